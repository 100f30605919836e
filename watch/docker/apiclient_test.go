package docker

import (
	"context"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
)

// An engine's API version is agreed on; one that is too old is said so.
func TestDialAgreesOnAVersion(t *testing.T) {
	for _, tt := range []struct{ engine, used, err string }{
		{"1.40", "1.40", "Docker 19 has API version 1.40, Thole needs at least 1.41: upgrade Docker"},
		{"1.41", "1.41", ""},
		{"1.44", "1.44", ""},
		{"9.99", "1.51", ""},
	} {
		t.Run(tt.engine, func(t *testing.T) {
			socket := filepath.Join(t.TempDir(), "docker.sock")
			listener, err := net.Listen("unix", socket)
			if err != nil {
				t.Fatal(err)
			}
			used := make(chan string, 1)
			server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Api-Version", tt.engine)
				if version, ok := strings.CutSuffix(r.URL.Path, "/info"); ok {
					used <- strings.TrimPrefix(version, "/v")
					_, _ = w.Write([]byte(`{"ServerVersion": "19"}`))
				}
			})}
			go server.Serve(listener) //nolint:errcheck // it ends with the test
			t.Cleanup(func() { _ = server.Close() })
			e, err := dial(context.Background(), Host{Address: "unix://" + socket})
			if tt.err == "" && err != nil || tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
				t.Errorf("error %v, want %q", err, tt.err)
			}
			if err == nil {
				_ = e.close()
			}
			if got := <-used; got != tt.used {
				t.Errorf("asked in version %s, want %s", got, tt.used)
			}
		})
	}
}

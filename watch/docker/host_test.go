package docker

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What the docker command writes for the context "mine".
func writeContext(t *testing.T, dir, meta string) {
	t.Helper()
	sum := sha256.Sum256([]byte("mine"))
	id := hex.EncodeToString(sum[:])
	for path, content := range map[string]string{
		"contexts/meta/" + id + "/meta.json":      meta,
		"contexts/tls/" + id + "/docker/ca.pem":   "ca",
		"contexts/tls/" + id + "/docker/cert.pem": "cert",
		"contexts/tls/" + id + "/docker/key.pem":  "key",
		"config.json":                             `{"currentContext": "mine", "auths": {}}`,
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, path)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, path), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestFindHost(t *testing.T) {
	const meta = `{"Name": "mine", "Endpoints": {"docker": {"Host": "tcp://127.0.0.1:2376", "SkipTLSVerify": false}}}`
	config := t.TempDir()
	writeContext(t, config, meta)
	blind := t.TempDir()
	writeContext(t, blind, strings.Replace(meta, "false", "true", 1))
	for _, tt := range []struct {
		name string
		host string // --docker
		env  map[string]string
		want Host // CA is compared by its base name
		err  string
	}{
		{name: "nothing said", want: Host{Address: defaultDocker}},
		{name: "--docker", host: "unix:///a", env: map[string]string{"DOCKER_HOST": "unix:///b"},
			want: Host{Address: "unix:///a", Given: true}},
		{name: "DOCKER_HOST",
			env:  map[string]string{"DOCKER_HOST": "unix:///b", "DOCKER_CONTEXT": "mine", "DOCKER_CONFIG": config},
			want: Host{Address: "unix:///b", Given: true}},
		{name: "with TLS",
			env:  map[string]string{"DOCKER_HOST": "tcp://a:1", "DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": "/c"},
			want: Host{Address: "tcp://a:1", CA: "ca.pem", Given: true}},
		{name: "the current context", env: map[string]string{"DOCKER_CONFIG": config},
			want: Host{Address: "tcp://127.0.0.1:2376", CA: "ca.pem", Given: true}},
		{name: "the default context", env: map[string]string{"DOCKER_CONFIG": config, "DOCKER_CONTEXT": "default"},
			want: Host{Address: defaultDocker}},
		{name: "no such context", env: map[string]string{"DOCKER_CONTEXT": "other"}, err: "see `docker context ls`"},
		{name: "a context that verifies nobody", env: map[string]string{"DOCKER_CONFIG": blind},
			err: "does not verify the server"},
		{name: "another machine", host: "ssh://a", err: "the engine must be on this machine"},
		{name: "a path", host: "/run/docker.sock",
			err: `invalid address of Docker "/run/docker.sock": must be unix:///`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := FindHost(tt.host, func(key string) string { return tt.env[key] })
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("error %v, want %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got.CA != "" {
				got.CA = filepath.Base(got.CA)
			}
			got.Cert, got.Key = "", ""
			if got != tt.want {
				t.Errorf("%+v, want %+v", got, tt.want)
			}
		})
	}
}

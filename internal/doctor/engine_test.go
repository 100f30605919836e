package doctor

import (
	"context"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"thole/internal/nstest"
	"thole/watch/docker"
)

func TestEngineIsJudged(t *testing.T) {
	for _, tt := range []struct {
		name         string
		want         Status
		found, after string
	}{
		{docker.EngineDocker, OK, "Docker 1.2, API version 1.41, cgroup driver systemd, at unix:///a", ""},
		{docker.EnginePodman, OK, "Podman 1.2, API version 1.41, cgroup driver systemd, at unix:///a", ""},
		{"Dory", Warning, "Dory 1.2, API version 1.41", "may not be recognised"},
		{"", Warning, "unknown 1.2, API version 1.41", "may not be recognised"},
	} {
		info := docker.EngineInfo{Name: tt.name, Version: "1.2", API: "1.41", CgroupDriver: "systemd"}
		got := Finding{Check: "engine", Status: OK}.engine(info, "unix:///a")
		if got.Status != tt.want || !strings.HasPrefix(got.Found, tt.found) ||
			!strings.Contains(got.Follows, tt.after) {
			t.Errorf("%q: got %+v, want %s, %q, %q", tt.name, got, tt.want, tt.found, tt.after)
		}
		info.Rootless = true
		rootless := Finding{Check: "engine", Status: OK}.engine(info, "unix:///a")
		if rootless.Status != Warning || !strings.HasSuffix(rootless.Found, ", rootless") {
			t.Errorf("%q, rootless: got %+v, want a warning", tt.name, rootless)
		}
		if (got.Mend == "") != (tt.want == OK) {
			t.Errorf("%q: mend is %q", tt.name, got.Mend)
		}
	}
}

// An address at which no engine answers is an error only if somebody gave it.
func TestNoEngine(t *testing.T) {
	for _, name := range []string{"DOCKER_HOST", "DOCKER_CONTEXT"} {
		t.Setenv(name, "")
	}
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	absent := "unix://" + filepath.Join(t.TempDir(), "docker.sock")
	for _, tt := range []struct {
		docker string // --docker
		want   Status
		found  string
	}{
		{"", OK, "none at unix:///var/run/docker.sock"},
		{"off", OK, "none is followed (--docker off)"},
		{absent, Unknown, absent + ": "},
		{"/run/docker.sock", Unknown, `invalid address of Docker "/run/docker.sock"`},
	} {
		var got Finding
		host := nstest.New(t) // without the machine's /run
		if err := host.Do(func() { got = engine(t.Context(), tt.docker) }); err != nil {
			t.Fatal(err)
		}
		if got.Check != "engine" || got.Status != tt.want || !strings.HasPrefix(got.Found, tt.found) {
			t.Errorf("--docker %q: got %+v, want %s, %q", tt.docker, got, tt.want, tt.found)
		}
	}
}

// An engine that accepts connections and does not answer costs no more than the time that it is given.
func TestEngineThatHangs(t *testing.T) {
	address, asked := "unix://"+filepath.Join(t.TempDir(), "docker.sock"), make(chan struct{}, 8)
	listener, err := net.Listen("unix", strings.TrimPrefix(address, "unix://"))
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		<-r.Context().Done()
	})}
	go server.Serve(listener) //nolint:errcheck // it ends with the test
	t.Cleanup(func() { _ = server.Close() })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan Finding, 1)
	began := time.Now()
	go func() { done <- engine(ctx, address) }()
	<-asked
	cancel()
	if got := <-done; got.Status != Unknown || time.Since(began) > engineTimeout {
		t.Errorf("got %+v after %v, want %s at once", got, time.Since(began), Unknown)
	}
}

package docker

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"thole/internal/nstest"
)

// The parts of the engines' answers that matter here.
const (
	dockerVersion = `{"Platform":{"Name":"Docker Engine - Community"},"Components":[
		{"Name":"Engine","Version":"28.1.1"},{"Name":"containerd","Version":"1.7.27"}],
		"Version":"28.1.1","ApiVersion":"1.49"}`
	podmanVersion = `{"Platform":{"Name":"linux/amd64/debian-12"},"Components":[
		{"Name":"Podman Engine","Version":"4.3.1"},{"Name":"Conmon"},{"Name":"OCI Runtime (runc)"}],
		"Version":"4.3.1","ApiVersion":"1.41"}`
)

// serveAPI answers each path of the API with a text; of others there is nothing. It returns the address.
func serveAPI(t *testing.T, answers map[string]string) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "docker.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Api-Version", "1.41")
		_, path, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/") // without the version
		if answer, ok := answers[path]; ok {
			_, _ = w.Write([]byte(answer))
		} else if !strings.HasSuffix(r.URL.Path, "/_ping") {
			w.WriteHeader(http.StatusNotFound)
		}
	})}
	go server.Serve(listener) //nolint:errcheck // it ends with the test
	t.Cleanup(func() { _ = server.Close() })
	return "unix://" + socket
}

func TestAskEngine(t *testing.T) {
	const info = `{"ServerVersion":"9.9","CgroupDriver":"systemd"}`
	for _, tt := range []struct {
		name, version string
		want          EngineInfo
	}{
		{"Docker", dockerVersion, EngineInfo{EngineDocker, "9.9", "1.49", "systemd", false}},
		{"Podman", podmanVersion, EngineInfo{EnginePodman, "9.9", "1.41", "systemd", false}},
		{"another", `{"Platform":{"Name":"Dory"},"ApiVersion":"1.42"}`,
			EngineInfo{"Dory", "9.9", "1.42", "systemd", false}},
		{"one that does not tell", `{}`, EngineInfo{"", "9.9", "1.41", "systemd", false}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			address := serveAPI(t, map[string]string{"info": info, "version": tt.version})
			got, err := DescribeEngine(context.Background(), Host{Address: address, Given: true})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// An engine that nobody asked for may be absent; one whose address was given may not.
func TestAskEngineWhereNoneIs(t *testing.T) {
	absent := "unix://" + filepath.Join(t.TempDir(), "docker.sock")
	if _, err := DescribeEngine(context.Background(), Host{Address: absent}); !errors.Is(err, ErrNoEngine) {
		t.Errorf("not given: %v, want %v", err, ErrNoEngine)
	}
	_, err := DescribeEngine(context.Background(), Host{Address: absent, Given: true})
	if err == nil || errors.Is(err, ErrNoEngine) {
		t.Errorf("given: %v, want another error", err)
	}
}

// Docker's own network modes are all known. Of another engine's those are that say which network a container has.
func TestNetworkModes(t *testing.T) {
	for mode, podman := range map[string]bool{
		"host": true, "none": true, "bridge": true, "default": true, "container:abc": true, "shop": true,
		"gone": false, "slirp4netns": false, "pasta": false, "ns:/run/netns/a": false, "": false,
	} {
		for version, want := range map[string]bool{dockerVersion: true, podmanVersion: podman, "": true} {
			inspected, err := json.Marshal(map[string]any{
				"Id": idOf("a"), "Name": "/a", "Image": "i", "State": map[string]any{"Running": true, "Pid": 7},
				"HostConfig": map[string]any{"NetworkMode": mode}, "Config": map[string]any{},
				"NetworkSettings": map[string]any{"Networks": map[string]any{"shop": map[string]any{"NetworkID": "n"}}},
			})
			if err != nil {
				t.Fatal(err)
			}
			answers := map[string]string{
				"info": "{}", "images/i/json": "{}", "containers/" + idOf("a") + "/json": string(inspected),
				"libpod/containers/" + idOf("a") + "/json": "{}",
			}
			if version != "" {
				answers["version"] = version
			}
			e, err := dial(context.Background(), Host{Address: serveAPI(t, answers), Given: true})
			if err != nil {
				t.Fatal(err)
			}
			c, err := e.Inspect(context.Background(), idOf("a"))
			if err != nil {
				t.Fatal(err)
			}
			if !c.running || c.details.modeUnknown == want {
				t.Errorf("mode %q of %.40s: running %t, unknown %t; want it known: %t",
					mode, version, c.running, c.details.modeUnknown, want)
			}
			_ = e.close()
		}
	}
}

// Which states mean that a container runs.
func TestRunningStates(t *testing.T) {
	for state, want := range map[string]bool{
		"running": true, "paused": true,
		"created": false, "restarting": false, "exited": false, "dead": false, "removing": false,
	} {
		answers := map[string]string{"info": "{}", "version": podmanVersion, "images/i/json": "{}",
			"containers/json": `[{"Id":"a","Names":["/a"],"ImageID":"i","State":"` + state +
				`","NetworkSettings":{"Networks":null}}]`}
		e, err := dial(context.Background(), Host{Address: serveAPI(t, answers), Given: true})
		if err != nil {
			t.Fatal(err)
		}
		list, err := e.List(context.Background())
		if err != nil || len(list) != 1 {
			t.Fatal(list, err)
		}
		if c := list[0]; c.running != want || c.network != "" {
			t.Errorf("state %s: running %t, want %t; network %q, want none told", state, c.running, want, c.network)
		}
		_ = e.close()
	}
}

// The context bounds how long an engine that hangs is waited for.
func TestAskEngineThatHangs(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "docker.sock")
	listener, err := net.Listen("unix", socket) // nobody accepts
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		_, err := DescribeEngine(ctx, Host{Address: "unix://" + socket, Given: true})
		done <- err
	}()
	cancel()
	nstest.WaitFor(t, patience, "the question to be given up", func() bool { return len(done) == 1 })
	if err := <-done; err == nil {
		t.Error("an engine that hangs answered")
	}
}

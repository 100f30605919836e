package engine_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"thole/internal/nstest"
)

// watchBirths tells the names of the cgroups that are made in the directory.
func watchBirths(t *testing.T, dir string) <-chan string {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	events := os.NewFile(uintptr(fd), "inotify")
	t.Cleanup(func() { events.Close() })
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_CREATE|unix.IN_ONLYDIR); err != nil {
		t.Fatal(err)
	}
	births := make(chan string)
	go func() {
		defer close(births)
		event := make([]byte, unix.SizeofInotifyEvent+unix.NAME_MAX+1)
		for {
			n, err := events.Read(event) // until it is closed
			if err != nil {
				return
			}
			births <- strings.TrimRight(string(event[unix.SizeofInotifyEvent:n]), "\x00")
		}
	}()
	return births
}

// listedLabels asks the engine for the container's labels.
func listedLabels(t *testing.T, socket, id string) map[string]string {
	t.Helper()
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}
	client := &http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
	resp, err := client.Get(fmt.Sprintf(`http://docker/containers/json?all=1&filters={"id":[%q]}`, id))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var list []struct{ Labels map[string]string }
	if err := json.NewDecoder(resp.Body).Decode(&list); err != nil || len(list) != 1 {
		t.Fatalf("the engine lists %v of container %s: %v", list, id, err)
	}
	return list[0].Labels
}

func listenInHost(t *testing.T, host *nstest.Host, addr string) net.Listener {
	t.Helper()
	var listener net.Listener
	var err error
	if enterErr := host.Do(func() { listener, err = net.Listen("tcp", addr) }); enterErr != nil || err != nil {
		t.Fatal(enterErr, err)
	}
	t.Cleanup(func() { listener.Close() })
	return listener
}

func accept(listener net.Listener) error {
	conn, err := listener.Accept()
	if err != nil {
		return err
	}
	return conn.Close()
}

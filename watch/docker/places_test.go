package docker

import "testing"

func TestContainerID(t *testing.T) {
	id := idOf("a")
	for name, want := range map[string]string{
		id:                         id,
		"docker-" + id + ".scope":  id,
		"docker-" + id:             "",
		id + ".scope":              "",
		id[1:]:                     "",
		idOf("A"):                  "",
		"libpod-" + id:             id,
		"libpod-" + id + ".scope":  id,
		"libpod-payload-" + id:     id,
		"libpod-conmon-" + id:      "",
		"libpod-" + id[1:]:         "",
		"libpod-libpod-" + id:      "",
		"docker-" + id + ".mount":  "",
		"docker-docker.scope":      "",
		"docker-" + idOf("") + "x": "",
	} {
		if got, _ := containerID(name); got != want {
			t.Errorf("%s: id %q, want %q", name, got, want)
		}
	}
}

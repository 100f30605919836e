package docker

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
)

// A Host says how Docker is reached.
type Host struct {
	Address       string // "unix:///var/run/docker.sock", "tcp://127.0.0.1:2376"
	CA, Cert, Key string // files for TLS; "": none
	Given         bool   // somebody chose it: it is wrong if nobody answers there
}

// defaultDocker is where Docker listens if nobody says otherwise.
const defaultDocker = "unix:///var/run/docker.sock"

// FindHost returns where Docker is: at host, if it is given, else where the docker
// command would look: DOCKER_HOST, the current context, its usual socket.
func FindHost(host string, getenv func(string) string) (Host, error) {
	if host = cmp.Or(host, getenv("DOCKER_HOST")); host != "" {
		found := Host{Address: host, Given: true}
		if certs := getenv("DOCKER_CERT_PATH"); certs != "" && getenv("DOCKER_TLS_VERIFY") != "" {
			found.CA, found.Cert = filepath.Join(certs, "ca.pem"), filepath.Join(certs, "cert.pem")
			found.Key = filepath.Join(certs, "key.pem")
		}
		return found, found.check()
	}
	dir := cmp.Or(getenv("DOCKER_CONFIG"), filepath.Join(getenv("HOME"), ".docker"))
	name, err := currentContext(dir, getenv)
	if err != nil {
		return Host{}, err
	}
	if name == "" || name == "default" {
		return Host{Address: defaultDocker}, nil
	}
	return readContext(dir, name)
}

func (h Host) check() error {
	u, err := url.Parse(h.Address)
	switch {
	case err != nil || u.Scheme == "" || u.Host+u.Path == "":
		return fmt.Errorf("invalid address of Docker %q: must be unix:///path/of/docker.sock, "+
			"tcp://host:port, or off", h.Address)
	case u.Scheme != "unix" && u.Scheme != "tcp":
		return fmt.Errorf("reaching Docker at %s: the address must begin with unix:// or tcp://, "+
			"because the engine must be on this machine: see --docker", h.Address)
	}
	return nil
}

func currentContext(dir string, getenv func(string) string) (string, error) {
	if name := getenv("DOCKER_CONTEXT"); name != "" {
		return name, nil
	}
	var config struct{ CurrentContext string }
	err := readJSON(filepath.Join(dir, "config.json"), &config)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return config.CurrentContext, err
}

// readContext reads what "docker context create" wrote.
func readContext(dir, name string) (Host, error) {
	sum := sha256.Sum256([]byte(name))
	id := hex.EncodeToString(sum[:])
	var meta struct {
		Endpoints map[string]struct {
			Host          string
			SkipTLSVerify bool
		}
	}
	if err := readJSON(filepath.Join(dir, "contexts", "meta", id, "meta.json"), &meta); err != nil {
		return Host{}, fmt.Errorf("the Docker context %q: %v: see `docker context ls`", name, err)
	}
	endpoint := meta.Endpoints["docker"]
	if endpoint.SkipTLSVerify {
		return Host{}, fmt.Errorf("the Docker context %q does not verify the server: "+
			"use --docker unix:///path/of/docker.sock", name)
	}
	host := Host{Address: cmp.Or(endpoint.Host, defaultDocker), Given: true}
	tls := filepath.Join(dir, "contexts", "tls", id, "docker")
	for file, to := range map[string]*string{"ca.pem": &host.CA, "cert.pem": &host.Cert, "key.pem": &host.Key} {
		if _, err := os.Stat(filepath.Join(tls, file)); err == nil {
			*to = filepath.Join(tls, file)
		}
	}
	return host, host.check()
}

func readJSON(path string, v any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("%s: %v", path, err)
	}
	return nil
}

package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/docker/docker/api/types/versions"

	"thole/internal/nstest/engine"
)

// A proxy stands between the daemon and Docker, and fails as it is told.
type proxy struct {
	t      testing.TB
	path   string // of its socket
	engine *engine.Docker
	client *http.Client // to Docker

	mu      sync.Mutex // guards what follows
	server  *http.Server
	version string        // of the API that it says is the newest it speaks; "": Docker's own
	deaf    bool          // events are swallowed
	held    chan struct{} // events wait until it is closed; nil: they do not
	cut     chan struct{} // closed: streams of events end in the middle of one
}

func newProxy(t testing.TB, e *engine.Docker) *proxy {
	p := &proxy{t: t, path: filepath.Join(filepath.Dir(e.Socket), "proxy.sock"), engine: e, cut: make(chan struct{})}
	p.client = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn,
		error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", e.Socket)
	}}}
	t.Cleanup(p.client.CloseIdleConnections)
	t.Cleanup(p.down)
	return p
}

// up has it listen.
func (p *proxy) up() {
	p.t.Helper()
	listener, err := net.Listen("unix", p.path)
	must(p.t, err)
	p.set(func() {
		p.server = &http.Server{Handler: p}
		go p.server.Serve(listener) //nolint:errcheck // it ends when it is closed
	})
}

// down removes its socket and ends all connections.
func (p *proxy) down() {
	p.set(func() {
		if p.server != nil {
			p.server.Close()
			os.Remove(p.path)
		}
	})
}

func (p *proxy) set(change func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change()
}

// speak has it be an engine whose newest API is this one, from the next connection on.
func (p *proxy) speak(version string) {
	p.down()
	p.set(func() { p.version = version })
	p.up()
}

// breakStreams ends streams of events in the middle of one.
func (p *proxy) breakStreams() {
	p.set(func() {
		close(p.cut)
		p.cut = make(chan struct{})
	})
}

var versionPrefix = regexp.MustCompile(`^/v(1\.[0-9]+)/`)

func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	version, cut := p.version, p.cut
	p.mu.Unlock()
	if asked := versionPrefix.FindStringSubmatch(r.URL.Path); asked != nil && version != "" {
		if versions.GreaterThan(asked[1], version) {
			w.WriteHeader(http.StatusBadRequest)
			fmt.Fprintf(w, `{"message":"client version %s is too new. Maximum supported API version is %s"}`, asked[1],
				version)
			return
		}
		r.URL.Path = strings.TrimPrefix(r.URL.Path, "/v"+asked[1]) // Docker's own version
	}
	back := &httputil.ReverseProxy{
		Rewrite:       func(pr *httputil.ProxyRequest) { pr.SetURL(&url.URL{Scheme: "http", Host: "docker"}) },
		Transport:     p.client.Transport,
		FlushInterval: -1,
		ErrorHandler:  func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) },
		ModifyResponse: func(answer *http.Response) error {
			if version != "" {
				answer.Header.Set("Api-Version", version)
			}
			if strings.HasSuffix(r.URL.Path, "/events") {
				answer.Body = &eventStream{ReadCloser: answer.Body, proxy: p, cut: cut}
			}
			return nil
		},
	}
	back.ServeHTTP(w, r)
}

// An eventStream can be swallowed and cut.
type eventStream struct {
	io.ReadCloser
	proxy *proxy
	cut   chan struct{}
	once  sync.Once
	read  chan []byte
	rest  []byte
}

func (s *eventStream) Read(b []byte) (int, error) {
	s.once.Do(func() {
		s.read = make(chan []byte)
		go func() {
			defer close(s.read)
			for {
				b := make([]byte, 4<<10)
				n, err := s.ReadCloser.Read(b)
				if err != nil {
					return
				}
				select {
				case s.read <- b[:n]:
				case <-s.cut:
					return
				}
			}
		}()
	})
	if len(s.rest) == 0 {
		select {
		case data, ok := <-s.read:
			if !ok {
				return 0, io.EOF
			}
			var deaf bool
			var held chan struct{}
			if s.proxy.set(func() { deaf, held = s.proxy.deaf, s.proxy.held }); deaf {
				return 0, nil
			}
			if held != nil {
				<-held
			}
			s.rest = data
		case <-s.cut:
			s.rest = []byte(`{"Type":"container","Act`)
			s.cut = nil
			closed := make(chan []byte)
			close(closed)
			s.read = closed
		}
	}
	n := copy(b, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

// post asks Docker itself, which is faster than the docker command.
func (p *proxy) post(path string) error {
	answer, err := p.client.Post("http://docker"+path, "application/json", nil)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if answer.StatusCode >= 300 {
		err = fmt.Errorf("POST %s: %s: %s", path, answer.Status, text)
	}
	return err
}

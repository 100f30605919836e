package dockertest

import (
	"encoding/json"
	"net"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// apiVersion is the version of Docker's API that the engine says it has.
const apiVersion = "1.47"

// A Container is what the engine says of one.
type Container struct {
	ID          string // 64 hexadecimal digits
	Name        string
	Network     string            // its mode: "host", "none", "bridge" or a network's name
	Labels      map[string]string // those of the image included
	ImageLabels map[string]string
	Running     bool
}

// An Engine answers until its test ends.
type Engine struct {
	mu         sync.Mutex // guards what follows
	containers map[string]Container
	events     []event
	more       chan struct{}        // closed and replaced when an event is added
	listed     map[string]time.Time // when the engine first answered what a container is, by its id
}

// An event is one of a container, as Docker sends it.
type event struct {
	Type   string
	Action string
	Actor  actor
	Time   int64 `json:"time"` // in seconds
}

type actor struct {
	ID string
}

// Start starts an engine that listens on a Unix socket.
func Start(t testing.TB, socket string) *Engine {
	t.Helper()
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	e := &Engine{containers: map[string]Container{}, more: make(chan struct{}), listed: map[string]time.Time{}}
	server := &http.Server{Handler: e}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = server.Serve(l) // it returns when the server is closed
	}()
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Errorf("ending the container engine: %v", err)
		}
		<-ended
	})
	return e
}

// Put adds or replaces containers, without an event.
func (e *Engine) Put(containers ...Container) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, c := range containers {
		e.containers[c.ID] = c
	}
}

// Remove removes a container, with an event.
func (e *Engine) Remove(id string) {
	e.mu.Lock()
	delete(e.containers, id)
	delete(e.listed, id)
	e.mu.Unlock()
	e.Emit(id, "destroy")
}

// Emit sends an event about a container to all who follow events.
func (e *Engine) Emit(id, action string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.events = append(e.events, event{"container", action, actor{id}, time.Now().Unix()})
	close(e.more)
	e.more = make(chan struct{})
}

// Answered returns when the engine first answered a listing that has this container; ok is false if it has not yet.
func (e *Engine) Answered(id string) (at time.Time, ok bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	at, ok = e.listed[id]
	return at, ok
}

// ServeHTTP answers one question.
func (e *Engine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	question := strings.TrimPrefix(r.URL.Path, "/v"+apiVersion)
	w.Header().Set("Api-Version", apiVersion)
	w.Header().Set("Content-Type", "application/json")
	id, all := path.Base(path.Dir(question)), question == "/containers/json"
	switch {
	case question == "/_ping":
	case question == "/info":
		answer(w, map[string]string{"ServerVersion": "27.0.0", "CgroupDriver": "cgroupfs"})
	case question == "/version":
		answer(w, map[string]any{"ApiVersion": apiVersion, "Components": []map[string]string{{"Name": "Engine"}}})
	case question == "/networks":
		answer(w, []string{})
	case question == "/events":
		e.follow(w, r)
	case all:
		e.list(w, r)
	case strings.HasPrefix(question, "/containers/"):
		e.inspect(w, id)
	case strings.HasPrefix(question, "/images/"):
		e.inspectImage(w, id)
	default:
		http.Error(w, `{"message":"no such question"}`, http.StatusNotFound)
	}
}

func answer(w http.ResponseWriter, v any) {
	_ = json.NewEncoder(w).Encode(v) // it fails where nobody waits for the answer any more
}

// list answers which containers there are: all, or those of a filter.
func (e *Engine) list(w http.ResponseWriter, r *http.Request) {
	var filters struct{ ID map[string]bool }
	if text := r.URL.Query().Get("filters"); text != "" {
		if err := json.Unmarshal([]byte(text), &filters); err != nil {
			http.Error(w, `{"message":"invalid filters"}`, http.StatusBadRequest)
			return
		}
	}
	e.mu.Lock()
	var found []map[string]any
	for id, c := range e.containers {
		if len(filters.ID) == 0 || filters.ID[id] {
			found = append(found, c.summary())
		}
	}
	e.mu.Unlock()
	slices.SortFunc(found, func(a, b map[string]any) int { return strings.Compare(a["Id"].(string), b["Id"].(string)) })
	if found == nil {
		found = []map[string]any{}
	}
	now := time.Now()
	answer(w, found)
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, c := range found {
		if id := c["Id"].(string); e.listed[id].IsZero() {
			e.listed[id] = now
		}
	}
}

// summary is the container as in a listing.
func (c Container) summary() map[string]any {
	state := "exited"
	if c.Running {
		state = "running"
	}
	return map[string]any{
		"Id": c.ID, "Names": []string{"/" + c.Name}, "Image": "image-of-" + c.Name, "ImageID": c.ID, "State": state,
		"Labels": c.Labels, "HostConfig": map[string]string{"NetworkMode": c.Network},
	}
}

func (e *Engine) inspect(w http.ResponseWriter, id string) {
	e.mu.Lock()
	c, ok := e.containers[id]
	e.mu.Unlock()
	if !ok {
		http.Error(w, `{"message":"no such container"}`, http.StatusNotFound)
		return
	}
	answer(w, map[string]any{
		"Id": c.ID, "Name": "/" + c.Name, "Image": c.ID, "State": map[string]bool{"Running": c.Running},
		"HostConfig": map[string]string{"NetworkMode": c.Network}, "NetworkSettings": map[string]any{},
		"Config": map[string]any{"Image": "image-of-" + c.Name, "Labels": c.Labels},
	})
}

// inspectImage answers which labels an image has. Each container has an image of its own, with its id.
func (e *Engine) inspectImage(w http.ResponseWriter, id string) {
	e.mu.Lock()
	labels := e.containers[id].ImageLabels
	e.mu.Unlock()
	answer(w, map[string]any{"Id": id, "Config": map[string]any{"Labels": labels}})
}

// follow sends all events since the moment that the client names, until the client or the test ends.
func (e *Engine) follow(w http.ResponseWriter, r *http.Request) {
	since, _ := strconv.ParseInt(r.URL.Query().Get("since"), 10, 64) // none: all events
	flush := http.NewResponseController(w).Flush
	for sent := 0; flush() == nil; {
		e.mu.Lock()
		events, more := e.events[sent:], e.more
		e.mu.Unlock()
		for _, ev := range events {
			if ev.Time >= since {
				answer(w, ev)
			}
		}
		if sent += len(events); len(events) > 0 {
			continue
		}
		select {
		case <-more:
		case <-r.Context().Done():
			return
		}
	}
}

package docker

import (
	"fmt"
	"strings"
	"sync"
	"time"

	"thole/internal/condition"
)

// A Status says whether the engine answers.
type Status struct {
	Host       string
	Connected  bool
	Since      time.Time
	Error      string // why it is not connected
	Containers int    // that are known, also those that do not run
}

// A connection remembers whether the engine answers.
type connection struct {
	host Host
	now  func() time.Time

	mu       sync.Mutex // guards what follows
	status   Status     // without Containers
	answered bool       // the engine answered once
}

func newConnection(host Host, now func() time.Time) *connection {
	return &connection{host: host, now: now, status: Status{Host: host.Address, Since: now()}}
}

func (c *connection) state() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.status
}

func (c *connection) hasAnswered() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.answered
}

func (c *connection) opened() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.answered = true
	c.status = Status{Host: c.host.Address, Connected: true, Since: c.now()}
}

// lost records why the engine does not answer. It reports whether the status is another one than before.
func (c *connection) lost(err error) (changed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	before := c.status
	c.status.Error = err.Error()
	if before.Connected {
		c.status.Connected, c.status.Since = false, c.now()
	}
	return before != c.status
}

// problem returns the problem that the engine does not answer. It is none if nobody expects an engine: none was given,
// none ever answered, and no container runs.
func (c *connection) problem(containersRun bool) []condition.Condition {
	c.mu.Lock()
	defer c.mu.Unlock()
	expected := c.answered || c.host.Given || containersRun
	if c.status.Connected || c.status.Error == "" || !expected {
		return nil
	}
	return []condition.Condition{{Code: condition.DockerAway, Where: "docker", Text: fmt.Sprintf(
		"known containers keep their labels, containers that start now are not known: %s: "+
			"see `systemctl status docker` (of Podman: podman.socket), or --docker",
		strings.ReplaceAll(c.status.Error, "\n", `\n`))}}
}

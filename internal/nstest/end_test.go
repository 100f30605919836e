package nstest

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// complaints is a test that writes its errors down.
type complaints struct {
	testing.TB
	cleanups []func()
	errors   []string
}

func (c *complaints) Cleanup(fn func()) { c.cleanups = append(c.cleanups, fn) }
func (c *complaints) Errorf(format string, args ...any) {
	c.errors = append(c.errors, fmt.Sprintf(format, args...))
}

// Whoever still is in the host when it has ended fails the test.
func TestEndTellsWhoStayed(t *testing.T) {
	c := &complaints{TB: t}
	h := New(c)
	h.patience = 10 * time.Millisecond
	inside, leave, left := make(chan bool), make(chan bool), make(chan error)
	go func() {
		left <- h.Do(func() {
			inside <- true
			<-leave
		})
	}()
	<-inside
	for i := len(c.cleanups) - 1; i >= 0; i-- {
		c.cleanups[i]()
	}
	if len(c.errors) != 1 || !strings.Contains(c.errors[0], "still in the network namespace: /proc/self/task/") {
		t.Errorf("the host's end complains %q, want that a thread is still inside", c.errors)
	}
	close(leave)
	if err := <-left; err != nil {
		t.Error(err)
	}
}

package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"
)

// ErrNoDaemon says that nobody answers on the socket. Commands that can work
// without a daemon branch on it.
var ErrNoDaemon = errors.New("no daemon")

// A Refusal is the daemon's "no". Nothing was changed by the request.
type Refusal struct {
	Reason  string // what a program can branch on: ReasonNoPolicy, or ""
	Code    int    // the HTTP status: 400 bad request, 403 not allowed, 409 taken, 422 bad policies, 429 too many, 5xx
	Message string // for a person; may have several lines
}

// ReasonNoPolicy says that a policy set was refused because it has no policy.
const ReasonNoPolicy = "no-policy"

func (r *Refusal) Error() string { return r.Message }

// A Client speaks to the daemon. Every request has a connection of its own: the
// daemon takes the caller of a connection from the socket, once.
type Client struct {
	socket string
	http   http.Client
}

// NewClient returns a client of the daemon that listens on the socket at path.
// It does not connect.
func NewClient(path string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) { return dialPatiently(ctx, path) }
	return &Client{
		socket: path,
		http:   http.Client{Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}},
	}
}

// dialPatiently connects to the daemon. Where others connect faster than it accepts, the kernel's queue is full
// for a moment (EAGAIN): it tries again, for connectPatience at most.
func dialPatiently(ctx context.Context, path string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectPatience)
	defer cancel()
	for {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "unix", path)
		if !errors.Is(err, syscall.EAGAIN) {
			return conn, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(connectRetry):
		}
	}
}

// Run puts the calling process into a new cgroup with these labels.
func (c *Client) Run(ctx context.Context, req RunRequest) (RunResponse, error) {
	return call[RunResponse](ctx, c, http.MethodPost, pathRun, req)
}

// Apply replaces the policy set.
func (c *Client) Apply(ctx context.Context, req ApplyRequest) (ApplyResponse, error) {
	return call[ApplyResponse](ctx, c, http.MethodPost, pathApply, req)
}

// Reload makes the daemon read its policy directory at once; without one, load its active set again.
func (c *Client) Reload(ctx context.Context) (ApplyResponse, error) {
	return call[ApplyResponse](ctx, c, http.MethodPost, pathReload, nil)
}

// Disarm makes the daemon remove the table, and load none until Arm.
func (c *Client) Disarm(ctx context.Context) (DisarmResponse, error) {
	return call[DisarmResponse](ctx, c, http.MethodPost, pathDisarm, nil)
}

// Arm makes the daemon enforce again.
func (c *Client) Arm(ctx context.Context) (ApplyResponse, error) {
	return call[ApplyResponse](ctx, c, http.MethodPost, pathArm, nil)
}

// Status asks for the daemon's account of itself.
func (c *Client) Status(ctx context.Context) (Status, error) {
	return call[Status](ctx, c, http.MethodGet, pathStatus, nil)
}

// Workloads lists what is labelled now, by name.
func (c *Client) Workloads(ctx context.Context) ([]Workload, error) {
	return call[[]Workload](ctx, c, http.MethodGet, pathWorkloads, nil)
}

// Policies lists the active set, by name.
func (c *Client) Policies(ctx context.Context) ([]Policy, error) {
	return call[[]Policy](ctx, c, http.MethodGet, pathPolicies, nil)
}

// Classes lists the classes of the loaded table, by number.
func (c *Client) Classes(ctx context.Context) ([]Class, error) {
	return call[[]Class](ctx, c, http.MethodGet, pathClasses, nil)
}

// call sends one request and decodes its answer.
func call[T any](ctx context.Context, c *Client, method, path string, body any) (T, error) {
	var answer T
	var sent io.Reader = http.NoBody
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return answer, fmt.Errorf("encoding the request: %v", err)
		}
		sent = bytes.NewReader(data)
	}
	// The host is not used: the transport always dials the socket.
	req, err := http.NewRequestWithContext(ctx, method, "http://thole"+path, sent)
	if err != nil {
		return answer, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.http.Do(req)
	if err != nil {
		return answer, c.explain(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return answer, refusal(resp)
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return answer, fmt.Errorf("the daemon at %s broke off its answer (%v): see its log, for example `journalctl "+
			"-u thole`", c.socket, err)
	}
	return answer, nil
}

// explain says what mends a request that was not answered.
func (c *Client) explain(err error) error {
	switch {
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w at %s: start one with `thole daemon`, or see `thole daemon --help`", ErrNoDaemon,
			c.socket)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("may not connect to %s: its directory must be searchable for everyone (mode 0755)", c.socket)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("the daemon at %s did not answer in time: see `thole status` and its log, for example "+
			"`journalctl -u thole`", c.socket)
	case brokenOff(err):
		return fmt.Errorf("the daemon at %s closed the connection without an answer: it has ended (see its log, for "+
			"example "+
			"`journalctl -u thole`), or uid %d has too many connections (see `thole status`, connections)",
			c.socket, os.Geteuid())
	default:
		return fmt.Errorf("asking the daemon at %s: %v: see its log, for example `journalctl -u thole`", c.socket, err)
	}
}

// brokenOff reports whether the daemon closed the connection before it answered.
func brokenOff(err error) bool {
	const early = "server closed idle connection" // of net/http, which does not export that error
	return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) ||
		strings.Contains(err.Error(), early)
}

func refusal(resp *http.Response) error {
	var body problemBody
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswerError)).Decode(&body); err != nil || body.Error == "" {
		body.Error = "the daemon answered " + resp.Status
	}
	return &Refusal{Code: resp.StatusCode, Reason: body.Reason, Message: body.Error}
}

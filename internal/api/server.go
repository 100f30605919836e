package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"

	"thole/compiler/policy"
	"thole/watch"
)

// Changes are the requests that change what is enforced.
type Changes interface {
	Apply(context.Context, ApplyRequest) (ApplyResponse, error)
	Reload(context.Context) (ApplyResponse, error)
	Disarm(context.Context) (DisarmResponse, error)
	Arm(context.Context) (ApplyResponse, error)
}

// State is what questions are answered from.
type State interface {
	Status() Status // without Connections and Answers; of the Bounds those of others
	Workloads() Listing[Workload]
	Policies() Listing[Policy]
	Classes() Listing[Class]
}

// A Table is the loaded table, as far as thole run must know it.
type Table interface {
	Sync(context.Context) error  // returns when it knows the cgroups of thole run that were made before
	Knows(cgroup uint64) bool    // by its id
	Grants() []policy.LabelGrant // who may give which labels
	Settings() *policy.Settings  // which labels count
}

// A Config is what a server answers with.
type Config struct {
	Socket  string
	Changes Changes
	State   State
	Owners  Owners
	Table   Table
	Scopes  *watch.Scopes           // the cgroups of thole run
	Account func(uid uint32) uint32 // whom a uid is charged to
	Now     func() time.Time
	Logger  *slog.Logger
}

// A Server answers requests over the socket. Whatever is asked for, who asks is
// taken from the socket.
type Server struct {
	listener *userListener
	changes  Changes
	state    State
	owners   Owners
	runner   *runner
	limiter  *limiter
	caches   []*listingCache // of the questions
	log      *slog.Logger
}

// Listen makes the socket. Nobody is answered before Run.
func Listen(c Config) (*Server, error) {
	listener, err := listen(c.Socket, c.Account, c.Logger)
	if err != nil {
		return nil, err
	}
	return &Server{
		listener: listener,
		changes:  c.Changes,
		state:    c.State,
		owners:   c.Owners,
		runner:   &runner{scopes: c.Scopes, table: c.Table, account: c.Account, log: c.Logger, now: c.Now},
		limiter:  newLimiter(c.Now),
		log:      c.Logger,
	}, nil
}

// Addr is where the server listens.
func (s *Server) Addr() string { return s.listener.Addr().String() }

// Run answers requests until the context ends; those that have begun are finished.
func (s *Server) Run(ctx context.Context) error {
	srv := &http.Server{
		Handler: s.routes(),
		// A request that arrives too slowly ends with its connection (connections.expire).
		ReadTimeout:    requestTimeout,
		WriteTimeout:   2 * requestTimeout,
		MaxHeaderBytes: maxHeaderBytes,
		ErrorLog:       slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, c)
		},
	}
	srv.SetKeepAlivesEnabled(false) // one request a connection: the peer is asked for once
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		if err := srv.Serve(s.listener); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("listening on %s: %v", s.listener.Addr(), err)
		}
		return nil
	})
	group.Go(func() error {
		<-ctx.Done()
		patience, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
		defer cancel()
		if srv.Shutdown(patience) != nil {
			_ = srv.Close() // some did not end in time
		}
		return nil
	})
	return group.Wait()
}

// connKey is where a request's context has its *userConn.
type connKey struct{}

func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("POST "+pathRun, answer(s, anyone, maxRunBody, s.postRun))
	mux.Handle("POST "+pathApply, answer(s, onlyRoot, maxApplyBody, s.postApply))
	mux.Handle("POST "+pathReload, answer(s, onlyRoot, 0, s.postReload))
	mux.Handle("POST "+pathDisarm, answer(s, onlyRoot, 0, s.postDisarm))
	mux.Handle("POST "+pathArm, answer(s, onlyRoot, 0, s.postArm))
	mux.Handle("GET "+pathStatus, answer(s, anyone, 0, s.getStatus))
	mux.Handle("GET "+pathWorkloads, listing(s, s.state.Workloads))
	mux.Handle("GET "+pathPolicies, listing(s, s.state.Policies))
	mux.Handle("GET "+pathClasses, listing(s, s.state.Classes))
	mux.Handle("GET "+pathUnlabelled, answer(s, anyone, 0, s.getUnlabelled))
	mux.Handle("POST "+pathOwner, answer(s, anyone, maxOwnerBody, s.postOwner))
	return mux
}

func (s *Server) postRun(ctx context.Context, from *userConn, req RunRequest) (RunResponse, error) {
	peer, err := newPeer(from.UnixConn)
	if err != nil {
		return RunResponse{}, err
	}
	defer peer.close()
	return s.runner.run(ctx, connAsker{from.UnixConn, peer}, req)
}

func (s *Server) postApply(ctx context.Context, from *userConn, req ApplyRequest) (ApplyResponse, error) {
	s.log.Info("apply", "files", len(req.Files), "dryRun", req.DryRun, "pid", from.pid)
	return s.changes.Apply(ctx, req)
}

func (s *Server) postReload(ctx context.Context, _ *userConn, _ nothing) (ApplyResponse, error) {
	return s.changes.Reload(ctx)
}

func (s *Server) postDisarm(ctx context.Context, from *userConn, _ nothing) (DisarmResponse, error) {
	s.log.Warn("asked to disarm", "pid", from.pid)
	return s.changes.Disarm(ctx)
}

func (s *Server) postArm(ctx context.Context, from *userConn, _ nothing) (ApplyResponse, error) {
	s.log.Info("asked to arm", "pid", from.pid)
	return s.changes.Arm(ctx)
}

func (s *Server) getStatus(context.Context, *userConn, nothing) (Status, error) {
	status := s.state.Status()
	status.Connections = s.listener.connections.status()
	status.Bounds = append(s.bounds(), status.Bounds...)
	for _, c := range s.caches {
		c.count(&status.Answers)
	}
	return status, nil
}

// nothing is the body of a request that needs none.
type nothing struct{}

// Who may send a request.
type permission bool

const (
	anyone   permission = false
	onlyRoot permission = true
)

// admitted makes a handler of a function. It bounds what one user can ask for.
func (s *Server) admitted(who permission, f func(http.ResponseWriter, *http.Request, *userConn)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		from := r.Context().Value(connKey{}).(*userConn)
		leave, err := s.limiter.enter(from.user)
		if err == nil {
			defer leave()
			if r.Method == http.MethodGet {
				err = s.limiter.mayReceive(from.user)
			}
		}
		if err != nil {
			select {
			case <-time.After(refusalDelay):
			case <-r.Context().Done():
			}
			w.Header().Set("Retry-After", "1")
			s.fail(w, r, from.uid, &Refusal{Code: http.StatusTooManyRequests, Message: err.Error()})
			return
		}
		if who == onlyRoot && from.uid != 0 {
			s.fail(w, r, from.uid, &Refusal{Code: http.StatusForbidden, Message: fmt.Sprintf(
				"only root may do this, and you are uid %d: try `sudo`", from.uid)})
			return
		}
		f(w, r, from)
	})
}

// answer makes a handler of a function: it reads the request, and writes the answer or the reason why there is none.
func answer[Req, Resp any](s *Server, who permission, maxBody int64,
	f func(context.Context, *userConn, Req) (Resp, error),
) http.Handler {
	return s.admitted(who, func(w http.ResponseWriter, r *http.Request, from *userConn) {
		ctx, cancel := context.WithTimeout(r.Context(), requestTimeout)
		defer cancel()
		var req Req
		if err := readBody(w, r, maxBody, &req); err != nil {
			s.fail(w, r, from.uid, err)
			return
		}
		from.heard()
		resp, err := f(ctx, from, req)
		if err != nil {
			s.fail(w, r, from.uid, err)
			return
		}
		s.send(w, from, http.StatusOK, encoded(resp))
	})
}

// send charges an answer to the user, and writes it.
func (s *Server) send(w http.ResponseWriter, to *userConn, code int, data []byte) {
	defer s.limiter.charge(to.user, len(data))()
	writeData(w, code, data)
}

// readBody decodes a bounded body that has nothing but known fields.
func readBody(w http.ResponseWriter, r *http.Request, limit int64, into any) error {
	if limit == 0 {
		return nil
	}
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, limit))
	d.DisallowUnknownFields()
	err := d.Decode(into)
	if _, more := d.Token(); err == nil && more != io.EOF {
		err = errors.New("there is more than one value")
	}
	if tooLong, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return &Refusal{Code: http.StatusRequestEntityTooLarge, Message: fmt.Sprintf(
			"the request has more than %d bytes", tooLong.Limit)}
	}
	if err != nil {
		return &Refusal{Code: http.StatusBadRequest, Message: fmt.Sprintf(
			"the request is not understood: %v: are thole and its daemon of the same version?", err)}
	}
	return nil
}

func (s *Server) fail(w http.ResponseWriter, r *http.Request, uid uint32, err error) {
	refusal, ok := errors.AsType[*Refusal](err)
	if !ok {
		refusal = &Refusal{Code: http.StatusInternalServerError, Message: err.Error()}
		s.log.Error("request failed", "path", r.URL.Path, "uid", uid, "error", err)
	} else {
		s.log.Debug("request refused", "path", r.URL.Path, "uid", uid, "code", refusal.Code, "error", refusal.Message)
	}
	writeJSON(w, refusal.Code, problemBody{Error: refusal.Message, Reason: refusal.Reason})
}

func writeJSON(w http.ResponseWriter, code int, v any) { writeData(w, code, encoded(v)) }

func writeData(w http.ResponseWriter, code int, data []byte) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = w.Write(data) // who does not read his answer is not waited for
}

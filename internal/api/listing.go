package api

import (
	"bytes"
	"encoding/json"
	"net/http"
	"sync"
)

// A Listing is what a question is answered with as long as the version is the same.
type Listing[T any] struct {
	Version uint64
	Make    func() []T
}

// A listingCache has the answer to one question, encoded. However many users ask, an answer is made once for each
// version, one at a time.
type listingCache struct {
	mu         sync.Mutex
	version    uint64
	data       []byte // nil: there is none yet
	made, kept uint64
}

// of returns the answer. It is not to be written to.
func (c *listingCache) of(version uint64, encode func() []byte) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.data != nil && version <= c.version { // who asked a moment too early gets the newer one
		c.kept++
		return c.data
	}
	c.data, c.version = encode(), version
	c.made++
	return c.data
}

// count adds what it did to an account.
func (c *listingCache) count(s *AnswerStatus) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s.Made += c.made
	s.Kept += c.kept
}

// listing makes a handler of a question to the daemon's state, for anybody.
func listing[T any](s *Server, of func() Listing[T]) http.Handler {
	cache := &listingCache{}
	s.caches = append(s.caches, cache)
	return s.admitted(anyone, func(w http.ResponseWriter, r *http.Request, from *userConn) {
		from.heard()
		l := of()
		data := cache.of(l.Version, func() []byte { return encoded(l.Make()) })
		s.send(w, from, http.StatusOK, data)
	})
}

// encoded is a value as JSON, with a newline.
func encoded(v any) []byte {
	var b bytes.Buffer
	_ = json.NewEncoder(&b).Encode(v) // the types of this package can be encoded
	return b.Bytes()
}

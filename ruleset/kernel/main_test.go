package kernel

import (
	"testing"

	"thole/internal/nstest"
	"thole/internal/nstest/probe"
)

func TestMain(m *testing.M) { nstest.Main(m, probe.Mode) }

// open returns a connection to the nftables of a host of its own.
func open(t testing.TB) (*nstest.Host, *Conn) {
	t.Helper()
	nstest.Need(t, "nft")
	h := nstest.New(t)
	return h, openIn(t, h)
}

// openIn returns a connection to the nftables of h.
func openIn(t testing.TB, h *nstest.Host) *Conn {
	t.Helper()
	var c *Conn
	var err error
	if doErr := h.Do(func() { c, err = Open(Options{}) }); doErr != nil {
		t.Fatal(doErr)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

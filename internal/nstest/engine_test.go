package nstest_test

import (
	"testing"
	"time"

	"thole/internal/nstest"
)

func TestEngine(t *testing.T) {
	host := nstest.New(t)
	start := time.Now()
	e := nstest.StartEngine(t, host)
	t.Log("up", time.Since(start))
	start = time.Now()
	image := e.Image("box", map[string]string{"a": "b c"})
	t.Log("image", time.Since(start))
	start = time.Now()
	e.Image("nginx", nil, "nginx", "curl")
	t.Log("nginx", time.Since(start))
	start = time.Now()
	p := e.Probe("web", "--net=host", "-l", "app=web", image)
	t.Log("probe", time.Since(start))
	start = time.Now()
	t.Log(e.Cgroup("web").Path(), e.Cgroup("web").ID(), p.PID())
	t.Log("cgroup", time.Since(start))
	t.Log(e.Docker("inspect", "web"))
	q := e.Probe("br", "-p", "8080:80", image)
	q.Listen("tcp", "[::]:80")
	t.Log(p.TCP("127.0.0.1:8080"), p.TCP("[::1]:8080"), p.TCP("172.17.0.2:80"), q.TCP("172.17.0.1:8080"))
	t.Log(host.NftList())
	start = time.Now()
	e.Restart()
	t.Log("restart", time.Since(start))
}

package nstest_test
import ("testing";"time";"thole/internal/nstest")
func TestZZ(t *testing.T) {
	host := nstest.New(t)
	m := func(what string, fn func()) { s := time.Now(); fn(); t.Log(what, time.Since(s)) }
	var e *nstest.Engine
	m("start", func(){ e = nstest.StartEngine(t, host) })
	m("true", func(){ host.Shell("true") })
	m("docker --version", func(){ e.Docker("--version") })
	m("docker version", func(){ e.Docker("version") })
	m("docker ps", func(){ e.Docker("ps") })
	m("image", func(){ e.Image("a", nil) })
	m("image again", func(){ e.Image("b", nil) })
	m("image nginx", func(){ e.Image("c", nil, "nginx", "curl") })
	for range 5 {
	m("run --net=host", func(){ e.Docker("run", "-d", "--net=host", "a", "sleep", "1000") })
	m("run", func(){ e.Docker("run", "-d", "a", "sleep", "1000") })
	}
	m("probe", func(){ e.Probe("p", "--net=host", "a") })
	m("stop", e.Kill)
	m("start", e.Start)
}

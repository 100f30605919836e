package nstest_test

import (
	"strings"
	"testing"

	"thole/internal/nstest"
	"thole/internal/nstest/leaktest"
	"thole/internal/nstest/tbtest"
)

func TestVictim(t *testing.T) { leaktest.Victim(t, nil) }

func TestNothingIsLeftAfterATest(t *testing.T) {
	m := &tbtest.Scope{TB: t}
	made := leaktest.Furnish(m)
	made.Hold(t)
	m.End()
	if left := made.Present(); len(left) > 0 {
		t.Errorf("left: %s", strings.Join(left, ", "))
	}
}

func TestNothingIsLeftHoweverTheBinaryEnds(t *testing.T) {
	nstest.Need(t, "root", "cgroup2")
	for _, how := range []string{"panic", "exit", "fail", "pass"} {
		t.Run(how, func(t *testing.T) {
			cmd, in, made := leaktest.StartVictim(t, how)
			in.Close()
			if err := cmd.Wait(); (err == nil) != (how == "pass") {
				t.Errorf("the victim ended with %v", err)
			}
			made.WaitGone(t)
			made.WaitJanitorGone(t)
		})
	}
}

func TestNothingIsLeftAfterSIGKILL(t *testing.T) {
	nstest.Need(t, "root", "cgroup2")
	cmd, _, made := leaktest.StartVictim(t, "killed")
	leaktest.Kill(t, cmd)
	made.WaitGone(t)
	made.WaitJanitorGone(t)
}

func TestTheNextBinarySweepsWhenTheJanitorWasKilledToo(t *testing.T) {
	nstest.Need(t, "root", "cgroup2")
	cmd, _, made := leaktest.StartVictim(t, "killed")
	made.KillJanitor(t)
	leaktest.Kill(t, cmd)
	if len(made.Present()) == 0 {
		t.Error("nothing is left that could be swept")
	}
	leaktest.RunNextBinary(t)
	made.WaitGone(t)
}

package cgroupfs

import "path"

// A Proof finds out which cgroups that are gone nothing holds any more. Each cgroup above them is asked once.
type Proof struct {
	Dying func(cgroup string) (id uint64, some bool, err error) // see Root.Dying

	above map[string]ancestor // by path; "": the root
}

type ancestor struct {
	id    uint64 // 0: there is none of this path now
	dying bool
}

// Frees reports whether nothing holds a cgroup that is gone. That is so if a cgroup above it has no dying descendants:
// the kernel counts there each cgroup that was removed and that something holds. A socket does; so do pages in the page
// cache, so that dying descendants prove nothing. What has the path of a cgroup above may be another, younger one.
func (p *Proof) Frees(cgroup string, id uint64) (bool, error) {
	for at := cgroup; at != ""; {
		if at = path.Dir(at); at == "." {
			at = ""
		}
		a, err := p.ask(at)
		if err != nil {
			return false, err
		}
		if a.id != 0 && a.id < id && !a.dying {
			return true, nil
		}
	}
	return false, nil
}

// HoldsAny reports whether the kernel may hold any cgroup that is gone.
func (p *Proof) HoldsAny() (bool, error) {
	root, err := p.ask("")
	return root.dying, err
}

func (p *Proof) ask(cgroup string) (a ancestor, err error) {
	a, known := p.above[cgroup]
	if known {
		return a, nil
	}
	if a.id, a.dying, err = p.Dying(cgroup); err != nil {
		return a, err
	}
	if p.above == nil {
		p.above = map[string]ancestor{}
	}
	p.above[cgroup] = a
	return a, nil
}

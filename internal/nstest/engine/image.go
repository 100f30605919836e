package engine

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"os/exec"
	"path"
	"regexp"
	"strings"

	"thole/internal/nstest"
)

// Image makes an image and returns its name. In it are busybox with all its applets, the machine's users, and the given
// programs (as names in PATH or as paths) in /bin, with the libraries that they load, /var/lib/NAME and /var/log/NAME.
// The labels are the image's. Nothing else is in it: configuration comes with docker run -v.
func (e *Docker) Image(name string, labels map[string]string, programs ...string) string {
	e.t.Helper()
	if err := importImage(e.Command, name, labels, programs); err != nil {
		e.t.Fatalf("nstest: image %s: %v", name, err)
	}
	return name
}

// importImage makes an image by the command import of docker or podman.
func importImage(
	engine func(args ...string) *exec.Cmd, name string, labels map[string]string, programs []string,
) error {
	content, err := imageContent(programs)
	if err != nil {
		return err
	}
	args := []string{"import", "--change", `CMD ["/bin/sh"]`}
	for key, value := range labels {
		args = append(args, "--change", "LABEL "+dockerfileQuote(key)+"="+dockerfileQuote(value))
	}
	cmd := engine(append(args, "-", name)...)
	cmd.Stdin = content
	_, err = nstest.Output("import", cmd)
	return err
}

// dockerfileQuote quotes what is to stay as it is in a Dockerfile.
func dockerfileQuote(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, `$`, `\$`).Replace(s) + `"`
}

// imageContent returns the image's files as a tar archive.
func imageContent(programs []string) (io.Reader, error) {
	var archive bytes.Buffer
	r := &rootfs{tar: tar.NewWriter(&archive), has: map[string]bool{}}
	r.dir("/tmp", 0o1777)
	for _, dir := range []string{"/dev", "/proc", "/run", "/sys", "/var/tmp"} {
		r.dir(dir, 0o755)
	}
	r.link("/var/run", "/run")
	r.copy("/etc/passwd", "/etc/passwd")
	r.copy("/etc/group", "/etc/group")
	for _, p := range append([]string{"busybox"}, programs...) {
		r.program(p)
	}
	r.applets()
	if r.err == nil {
		r.err = r.tar.Close()
	}
	return &archive, r.err
}

// rootfs writes a container's files. What is there already stays. It holds its first error, and does nothing after it.
type rootfs struct {
	tar *tar.Writer
	has map[string]bool
	err error
}

// program copies a program to /bin, and what it needs to where it looks for it.
func (r *rootfs) program(name string) {
	file, err := exec.LookPath(name)
	if err != nil {
		r.fail(err)
		return
	}
	base := path.Base(file)
	r.copy("/bin/"+base, file)
	for _, library := range libraries(file) {
		r.copy(library, library)
	}
	r.dir("/var/lib/"+base, 0o755)
	r.dir("/var/log/"+base, 0o755)
}

// libraries lists the shared libraries of a program, and its loader, if it has any.
func libraries(program string) []string {
	out, err := exec.Command("ldd", program).Output()
	if err != nil {
		return nil // it says so of what is static
	}
	var paths []string
	for _, match := range lddLine.FindAllSubmatch(out, -1) {
		paths = append(paths, string(match[1]))
	}
	return paths
}

// lddLine finds the paths in "libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)" and "/lib64/ld-linux-x86-64.so.2
// (0x…)".
var lddLine = regexp.MustCompile(`(/\S+) \(0x`)

// applets links all that busybox can do, except where a program of that name is.
func (r *rootfs) applets() {
	names, err := exec.Command("busybox", "--list").Output()
	r.fail(err)
	for _, name := range strings.Fields(string(names)) {
		r.link("/bin/"+name, "/bin/busybox")
	}
}

func (r *rootfs) copy(name, from string) {
	content, err := os.ReadFile(from)
	r.fail(err)
	mode := int64(0o644)
	if info, err := os.Stat(from); err == nil {
		mode = int64(info.Mode().Perm())
	}
	r.add(tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(content))}, content)
}

func (r *rootfs) link(name, to string) {
	r.add(tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to, Mode: 0o777}, nil)
}

func (r *rootfs) dir(name string, mode int64) {
	r.add(tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: mode}, nil)
}

// add writes an entry, after the directories above it.
func (r *rootfs) add(h tar.Header, content []byte) {
	if r.err != nil || r.has[h.Name] {
		return
	}
	r.has[h.Name] = true
	if parent := path.Dir(h.Name); parent != "/" {
		r.dir(parent, 0o755)
	}
	h.Name = strings.TrimPrefix(h.Name, "/")
	r.fail(r.tar.WriteHeader(&h))
	_, err := r.tar.Write(content)
	r.fail(err)
}

func (r *rootfs) fail(err error) {
	if r.err == nil {
		r.err = err
	}
}

package pki

import (
	"bytes"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// The types of PEM blocks.
const (
	blockKey         = "PRIVATE KEY" // PKCS #8
	blockCertificate = "CERTIFICATE"
	blockRequest     = "CERTIFICATE REQUEST"
	blockList        = "X509 CRL"
)

// maxFileSize bounds what is read: two lists in PEM, which is 4/3 of DER.
const maxFileSize = 3 * maxListSize

// blocks returns the contents of a PEM file that holds blocks of one type, n at most.
// Text around them, such as openssl's -text, is no part of it.
func blocks(data []byte, want string, n int) ([][]byte, error) {
	var found [][]byte
	for {
		block, rest := pem.Decode(data)
		if block == nil {
			break
		}
		if block.Type != want {
			return nil, fmt.Errorf("%w: the file contains a %s, want a %s", ErrMalformed, block.Type, want)
		}
		found = append(found, block.Bytes)
		data = rest
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("%w: the file contains no %s (PEM)", ErrMalformed, want)
	}
	if len(found) > n {
		return nil, fmt.Errorf("%w: the file contains %d times a %s; allowed: %d", ErrMalformed, len(found), want, n)
	}
	return found, nil
}

func block(data []byte, want string) ([]byte, error) {
	found, err := blocks(data, want, 1)
	if err != nil {
		return nil, err
	}
	return found[0], nil
}

func encodePEM(blockType string, ders ...[]byte) []byte {
	var b bytes.Buffer
	for _, der := range ders {
		b.Write(pem.EncodeToMemory(&pem.Block{Type: blockType, Bytes: der}))
	}
	return b.Bytes()
}

// A directory is one that holds keys or what they are trusted by.
type directory struct {
	path string
	open *os.File // the directory itself, from openDirectory on: files are read by it, whatever path leads to by then
}

func (d directory) file(name string) string { return filepath.Join(d.path, name) }

// sharedPatience is how long a reader waits for a lock. Any user who may read the directory can lock it, so nobody may
// wait longer. A reader without the lock may meet two files of different age, as in the middle of an installation; each
// of them is whole, and is verified.
const sharedPatience = 250 * time.Millisecond

// openDirectory takes the lock of a directory that nobody else may write. Symbolic links may lead to the directory;
// what is in it must not be a link.
func openDirectory(path string, how int) (d directory, unlock func(), err error) {
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target // all is read and written there, even if the link is changed meanwhile
	}
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return d, nil, err
	}
	if err := checkAccess(f, 0o022); err != nil {
		f.Close()
		return d, nil, err
	}
	if err := lock(f, how); err != nil {
		f.Close()
		return d, nil, fmt.Errorf("locking %s: %v", path, err)
	}
	return directory{path, f}, func() { f.Close() }, nil
}

// lock takes a lock of flock(2): an exclusive one in any case, a shared one within sharedPatience or not at all.
func lock(f *os.File, how int) error {
	if how == syscall.LOCK_SH {
		how |= syscall.LOCK_NB
	}
	for deadline := time.Now().Add(sharedPatience); ; {
		err := syscall.Flock(int(f.Fd()), how)
		switch {
		case errors.Is(err, syscall.EINTR):
		case errors.Is(err, syscall.EWOULDBLOCK) && time.Now().Before(deadline):
			time.Sleep(5 * time.Millisecond)
		case errors.Is(err, syscall.EWOULDBLOCK):
			return nil
		default:
			return err
		}
	}
}

// makeDirectory makes it if there is none, and its parents, and takes the lock.
func makeDirectory(path string) (directory, func(), error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return directory{}, nil, err
	}
	return openDirectory(path, syscall.LOCK_EX)
}

// checkAccess refuses what belongs to somebody else than root or the caller, or has one
// of the forbidden bits in its mode.
func checkAccess(f *os.File, forbidden os.FileMode) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	stat := info.Sys().(*syscall.Stat_t) // it is one on Linux
	if uid := int(stat.Uid); uid != 0 && uid != os.Geteuid() {
		return fmt.Errorf("%w: %s belongs to the user %d: try `chown root %[2]s`", ErrPermissions, f.Name(), uid)
	}
	if mode := info.Mode().Perm(); mode&forbidden != 0 {
		return fmt.Errorf("%w: %s has mode %04o: try `chmod %04o %[2]s`", ErrPermissions, f.Name(), mode,
			mode&^forbidden)
	}
	return nil
}

// read returns a file's content; no other than the owner may have access to it that the
// mode bits in forbidden give.
func (d directory) read(name string, forbidden os.FileMode) ([]byte, error) {
	f, err := d.openFile(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", f.Name())
	}
	if err := checkAccess(f, forbidden); err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFileSize+1))
	if err == nil && len(data) > maxFileSize {
		err = fmt.Errorf("%s has more than %d bytes", f.Name(), maxFileSize)
	}
	return data, err
}

// openFile opens a file of the directory, which must not be a symbolic link, without waiting for a pipe's other end.
func (d directory) openFile(name string) (*os.File, error) {
	const flags = syscall.O_RDONLY | syscall.O_CLOEXEC | syscall.O_NOFOLLOW | syscall.O_NONBLOCK
	for {
		fd, err := syscall.Openat(int(d.open.Fd()), name, flags, 0)
		switch {
		case err == nil:
			return os.NewFile(uintptr(fd), d.file(name)), nil
		case !errors.Is(err, syscall.EINTR):
			return nil, &os.PathError{Op: "open", Path: d.file(name), Err: err}
		}
	}
}

func (d directory) readPublic(name string) ([]byte, error) { return d.read(name, 0o022) }
func (d directory) readSecret(name string) ([]byte, error) { return d.read(name, 0o077) }

// write replaces a file at once, also where the machine crashes: who reads it sees the
// old content or the new one.
func (d directory) write(name string, data []byte, mode os.FileMode) error {
	f, err := os.CreateTemp(d.path, "."+filepath.Base(name)+"-*") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // it fails after the renaming, as it should
	_, err = f.Write(data)
	if err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return err
	}
	return d.rename(f.Name(), d.file(name))
}

func (d directory) rename(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return err
	}
	parent, err := os.Open(filepath.Dir(to))
	if err != nil {
		return err
	}
	defer parent.Close()
	return parent.Sync()
}

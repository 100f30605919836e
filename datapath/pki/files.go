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
			return nil, fmt.Errorf("%w: it holds a %s, where a %s is wanted", ErrMalformed, block.Type, want)
		}
		found = append(found, block.Bytes)
		data = rest
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("%w: it holds no %s (PEM)", ErrMalformed, want)
	}
	if len(found) > n {
		return nil, fmt.Errorf("%w: it holds %d times a %s; allowed: %d", ErrMalformed, len(found), want, n)
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
type directory struct{ path string }

func (d directory) file(name string) string { return filepath.Join(d.path, name) }

// openDirectory takes the lock of a directory that nobody else may write.
func openDirectory(path string, how int) (d directory, unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return d, nil, err
	}
	if err := checkAccess(f, 0o022); err != nil {
		f.Close()
		return d, nil, err
	}
	for {
		err = syscall.Flock(int(f.Fd()), how)
		if !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		return d, nil, fmt.Errorf("locking %s: %v", path, err)
	}
	return directory{path}, func() { f.Close() }, nil
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
		return fmt.Errorf("%w: %s has mode %04o: try `chmod %04o %[2]s`", ErrPermissions, f.Name(), mode, mode&^forbidden)
	}
	return nil
}

// read returns a file's content; no other than the owner may have access to it that the
// mode bits in forbidden give.
func (d directory) read(name string, forbidden os.FileMode) ([]byte, error) {
	f, err := os.OpenFile(d.file(name), os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file", f.Name())
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

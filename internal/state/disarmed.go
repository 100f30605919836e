package state

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// Disarmed returns since when Thole is disarmed; the zero time if it is not.
func (s *Dir) Disarmed() (time.Time, error) {
	info, err := os.Lstat(filepath.Join(s.path, DisarmedFile))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return time.Time{}, nil
	case err != nil:
		return time.Time{}, fmt.Errorf("finding out whether Thole is disarmed: %v", err)
	}
	return info.ModTime(), nil
}

// Disarm makes the file. It has no content, so that a full disk does not keep anybody from turning Thole off.
func (s *Dir) Disarm() error {
	err := os.MkdirAll(s.path, 0o700)
	var f *os.File
	if err == nil {
		f, err = os.OpenFile(filepath.Join(s.path, DisarmedFile), os.O_CREATE|os.O_WRONLY, 0o600)
	}
	if err == nil {
		err = errors.Join(f.Sync(), f.Close(), s.sync())
	}
	if err != nil {
		return fmt.Errorf("storing that Thole is disarmed: %v", err)
	}
	return nil
}

// Arm removes the file. ok is false if there was none.
func (s *Dir) Arm() (ok bool, err error) {
	err = os.Remove(filepath.Join(s.path, DisarmedFile))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err = errors.Join(err, s.sync()); err != nil {
		return true, fmt.Errorf("arming: %v", err)
	}
	return true, nil
}

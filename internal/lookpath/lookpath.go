package lookpath

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Find finds the file that execvp(3) would run for name. The error is
// fs.ErrNotExist where there is none and fs.ErrPermission where there is one that
// may not be executed.
func Find(name, path string) (string, error) {
	if strings.Contains(name, "/") {
		return name, executable(name)
	}
	if name == "" {
		return "", fs.ErrNotExist
	}
	notFound := fs.ErrNotExist
	for _, dir := range filepath.SplitList(path) {
		file := dir + "/" + name
		if dir == "" {
			file = "./" + name
		}
		err := executable(file)
		if err == nil {
			return file, nil
		}
		if errors.Is(err, fs.ErrPermission) {
			notFound = fs.ErrPermission
		}
	}
	return "", notFound
}

func executable(file string) error {
	info, err := os.Stat(file)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fs.ErrPermission
	case err != nil:
		return fs.ErrNotExist
	case info.IsDir():
		return fs.ErrPermission
	case unix.Faccessat(unix.AT_FDCWD, file, unix.X_OK, unix.AT_EACCESS) != nil:
		return fs.ErrPermission
	}
	return nil
}

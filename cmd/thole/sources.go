package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"thole/compiler/policy"
	"thole/watch/filewatch"
)

// readSources reads the files that -f names: a file, the *.yaml and *.yml files of
// a directory in the order of their names, or "-" for standard input.
//
// A directory without such a file gives none. Where nothing gives any, the error is filewatch.ErrNoPolicyFile.
func readSources(proc *process, paths []string) ([]policy.File, error) {
	var files []policy.File
	var none error
	for _, path := range paths {
		more, err := readSource(proc, path)
		if errors.Is(err, filewatch.ErrNoPolicyFile) {
			none = fmt.Errorf("reading policies: %w", err)
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("reading policies: %w", err)
		}
		files = append(files, more...)
	}
	if len(files) == 0 {
		return nil, none
	}
	return files, nil
}

func readSource(proc *process, path string) ([]policy.File, error) {
	if path == "-" {
		data, err := readBounded(proc.stdin)
		return []policy.File{{Name: "stdin", Data: data}}, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		file, err := readFile(path)
		return []policy.File{file}, err
	}
	return filewatch.ReadPolicies(path)
}

func readFile(path string) (policy.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return policy.File{}, err
	}
	defer f.Close()
	data, err := readBounded(f)
	return policy.File{Name: path, Data: data}, err
}

// maxSource is more than the compiler takes of one file: it says so, and where.
const maxSource = 2 << 20 // bytes

// readBounded reads no more than it takes to see that a file is too long.
func readBounded(r io.Reader) ([]byte, error) { return io.ReadAll(io.LimitReader(r, maxSource)) }

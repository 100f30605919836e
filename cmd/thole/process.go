package main

import (
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// A process is this process, as commands see it: what it was started with, and what it may do.
type process struct {
	args           []string // without the program's name
	stdin          io.Reader
	stdout, stderr io.Writer
	terminal       bool // stdout is one
	getenv         func(string) string
	environ        func() []string
	exec           func(path string, argv, env []string) error // returns only on failure
	uid            int
	pid            int
}

func thisProcess() *process {
	return &process{
		args:     os.Args[1:],
		stdin:    os.Stdin,
		stdout:   os.Stdout,
		stderr:   os.Stderr,
		terminal: isTerminal(os.Stdout),
		getenv:   os.Getenv,
		environ:  os.Environ,
		exec:     syscall.Exec,
		uid:      os.Geteuid(),
		pid:      os.Getpid(),
	}
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// colour reports whether output may be coloured (no-color.org).
func (proc *process) colour() bool {
	return proc.terminal && proc.getenv("NO_COLOR") == "" && proc.getenv("TERM") != "dumb"
}

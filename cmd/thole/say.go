package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"thole/internal/printable"
)

// say prints text with parts that may come from outside, each of which stays on its line. All text output goes by
// it, but for tables, colours and messages of several lines.
func say(w io.Writer, format string, args ...any) error {
	for i, arg := range args {
		if s, ok := arg.(string); ok {
			args[i] = printable.Line(s)
		}
	}
	_, err := io.WriteString(w, printable.Text(fmt.Sprintf(format, args...)))
	return err
}

// oneLine escapes the line ends in the names that an error of this command may have: of files, and of what was
// given to the command. What is left are the line ends of Thole's own messages.
func oneLine(text string, err error, args []string) string {
	names := args
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		names = append([]string{e.Path}, names...)
	}
	for _, name := range names {
		if flag, value, ok := strings.Cut(name, "="); ok && strings.HasPrefix(flag, "-") {
			name = value
		}
		if strings.Contains(name, "\n") {
			text = strings.ReplaceAll(text, name, strings.ReplaceAll(name, "\n", `\n`))
		}
	}
	return text
}

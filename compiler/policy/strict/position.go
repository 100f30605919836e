package strict

import (
	"fmt"
	"strings"
)

// A Position is a place in a file. Line and Column count from 1; 0 means unknown.
type Position struct {
	File         string
	Line, Column int
}

// A position has one line, whatever the file's name: else a file could forge lines of messages.
func (p Position) String() string {
	file := strings.ReplaceAll(p.File, "\n", `\n`)
	switch {
	case p.File == "":
		return "-"
	case p.Line == 0:
		return file
	default:
		return fmt.Sprintf("%s:%d:%d", file, p.Line, p.Column)
	}
}

// Before reports whether a stands before b in one file.
func Before(a, b Position) bool {
	return a.Line < b.Line || a.Line == b.Line && a.Column < b.Column
}

// A SyntaxError says what is wrong with a file, and where. The message has the
// form "what was found; what is allowed".
type SyntaxError struct {
	Position Position
	Message  string
}

func (e *SyntaxError) Error() string { return e.Position.String() + ": " + e.Message }

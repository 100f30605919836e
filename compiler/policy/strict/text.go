package strict

import (
	"bytes"
	"fmt"
	"unicode"
	"unicode/utf8"
)

// Limits of what is read, so that a hostile or broken file costs little. A
// policy set of ordinary size is two orders of magnitude below each.
const (
	maxFileSize  = 1 << 20 // bytes
	maxDocuments = 4096    // in one file
	maxDepth     = 24      // of lists and mappings; the deepest that has a meaning is 11
)

// checkText reports whether data is text that editors, terminals and YAML parsers
// read alike. It fails at the first character that they do not.
func (d *Decoder) checkText(data []byte) bool {
	if len(data) > maxFileSize {
		d.Fail(d.at(1, 1), "a file of %d bytes; allowed: %d, divide it", len(data), maxFileSize)
		return false
	}
	for i, line := range bytes.Split(data, []byte("\n")) {
		line = bytes.TrimSuffix(line, []byte("\r"))
		if column, problem := checkLine(line); problem != "" {
			d.Fail(d.at(i+1, column), "%s", problem)
			return false
		}
	}
	return true
}

// checkLine returns what is wrong with the first bad character of a line, and its
// column. A tab in a comment is harmless; anywhere else it looks like an
// indentation that it is not.
func checkLine(line []byte) (column int, problem string) {
	comment := false
	for column = 1; len(line) > 0; column++ {
		r, size := utf8.DecodeRune(line)
		switch {
		case r == utf8.RuneError && size == 1:
			return column, fmt.Sprintf("the byte 0x%02x is not UTF-8; allowed: text in UTF-8", line[0])
		case r == '\t' && comment:
		case r == '\t':
			return column, "a tab; allowed: spaces"
		case r == '\ufeff':
			return column, "a byte order mark; allowed: UTF-8 without one"
		case column == 1 && r == '%':
			return column, "a YAML directive; allowed: documents without directives"
		case !isPlain(r):
			return column, fmt.Sprintf("the character %U; allowed: printable characters, spaces and line feeds", r)
		}
		comment = comment || r == '#'
		line = line[size:]
	}
	return 0, ""
}

// isPlain reports whether r looks like itself. Not plain are control characters,
// the separators that YAML 1.1 takes for line breaks and editors do not, and what
// turns the direction of writing, so that a reader sees another policy than the
// parser.
func isPlain(r rune) bool {
	switch {
	case unicode.IsControl(r), r == '\u2028', r == '\u2029':
		return false
	case r >= '\u202a' && r <= '\u202e', r >= '\u2066' && r <= '\u2069':
		return false
	case r == '\ufffe', r == '\uffff':
		return false
	}
	return true
}

// A chunk is the text of one document, with the "---" before it.
type chunk struct {
	line  int // of its first line in the file
	lines [][]byte
}

// splitDocuments cuts a file before each line that begins a document. No other
// place of a YAML text may hold such a line, so a mistake in one document cannot
// move the borders of the next.
func splitDocuments(data []byte) []chunk {
	chunks := []chunk{{line: 1}}
	for i, line := range bytes.SplitAfter(data, []byte("\n")) {
		last := &chunks[len(chunks)-1]
		if beginsDocument(line) && len(last.lines) > 0 {
			chunks = append(chunks, chunk{line: i + 1})
			last = &chunks[len(chunks)-1]
		}
		last.lines = append(last.lines, line)
	}
	return chunks
}

func beginsDocument(line []byte) bool {
	rest, ok := bytes.CutPrefix(line, []byte("---"))
	return ok && (len(rest) == 0 || bytes.ContainsAny(rest[:1], " \r\n"))
}

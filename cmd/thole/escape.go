package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// Names, labels, cgroups and files come from other people. A control character in one of them would otherwise
// reach the terminal of the administrator who lists it, and could clear it, colour it, or forge lines. So all text
// output passes one of the functions here. They escape as Go's %q does, but leave double quotes as they are.
//
// JSON and YAML keep the values themselves, see encodeUnprintable.

var (
	unquoteText = strings.NewReplacer(`\"`, `"`, `\\`, `\`)
	unquoteCell = strings.NewReplacer(`\"`, `"`, `\\`, `\\`) // a backslash stays escaped
)

// escapeCell is for text that comes from outside as a whole, as a name: it can be read back.
func escapeCell(s string) string { return unquoteCell.Replace(quoted(s)) }

// escapeLine is for text of one line that may have parts from outside.
func escapeLine(s string) string { return unquoteText.Replace(quoted(s)) }

// escapeText is for text of any number of lines that may have parts from outside.
func escapeText(s string) string { return escapeBetween(s, "\n") }

// escapeScript is for a script of nft.
func escapeScript(s string) string { return escapeBetween(s, "\n", "\t") }

func quoted(s string) string {
	q := strconv.Quote(s)
	return q[1 : len(q)-1]
}

// escapeBetween escapes all but the separators.
func escapeBetween(s string, separators ...string) string {
	if len(separators) == 0 {
		return escapeLine(s)
	}
	parts := strings.Split(s, separators[0])
	for i, part := range parts {
		parts[i] = escapeBetween(part, separators[1:]...)
	}
	return strings.Join(parts, separators[0])
}

func escapeAll(words []string) []string {
	escaped := make([]string, len(words))
	for i, word := range words {
		escaped[i] = escapeLine(word)
	}
	return escaped
}

// say prints text with parts that may come from outside, each of which stays on its line. All text output goes by
// it, but for tables, colours and messages of several lines.
func say(w io.Writer, format string, args ...any) error {
	for i, arg := range args {
		if s, ok := arg.(string); ok {
			args[i] = escapeLine(s)
		}
	}
	_, err := io.WriteString(w, escapeText(fmt.Sprintf(format, args...)))
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

// encodeUnprintable writes what cannot be printed in strings of JSON, or in YAML's between double quotes, as an
// escape of that language: \u and four digits, and wide for what needs more. The value stays the same.
func encodeUnprintable(data []byte, wide func(rune) string) []byte {
	var b bytes.Buffer
	for _, r := range string(data) {
		switch {
		case r == '\n' || strconv.IsPrint(r):
			b.WriteRune(r)
		case r > 0xffff:
			b.WriteString(wide(r))
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.Bytes()
}

func wideInJSON(r rune) string {
	high, low := utf16.EncodeRune(r)
	return fmt.Sprintf(`\u%04x\u%04x`, high, low)
}

func wideInYAML(r rune) string { return fmt.Sprintf(`\U%08x`, r) }

// isPrintable reports whether nothing of s has to be escaped.
func isPrintable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !strconv.IsPrint(r) })
}

// An encodingWriter encodes what cannot be printed in lines of JSON, each of which is one Write.
type encodingWriter struct{ io.Writer }

func (w encodingWriter) Write(p []byte) (int, error) {
	if _, err := w.Writer.Write(encodeUnprintable(p, wideInJSON)); err != nil {
		return 0, err
	}
	return len(p), nil
}

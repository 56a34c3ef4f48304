package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"
)

// quote makes a name safe to print: with anything in it that a terminal or a
// script splitting words would act on, it comes in Go's (and C's) quotes.
func quote(s string) string {
	if s == "" {
		return `""`
	}
	for _, r := range s {
		if r == ' ' || r == '"' || r == '\\' || !strconv.IsPrint(r) || r == utf8.RuneError {
			return strconv.Quote(s)
		}
	}
	return s
}

// oneLine keeps a message on its line, whatever is in it.
func oneLine(s string) string {
	var b strings.Builder
	for i, r := range strings.TrimSpace(s) {
		switch {
		case r == '\n':
			b.WriteString("; ")
		case r == utf8.RuneError:
			fmt.Fprintf(&b, `\x%02x`, strings.TrimSpace(s)[i])
		case !strconv.IsPrint(r):
			b.WriteString(strings.Trim(strconv.QuoteRune(r), "'"))
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// column is one of a table's. Its cells must be quoted already.
type column struct {
	title string
	right bool // numbers
}

// table prints aligned columns as lsblk does: two spaces apart would be one too
// many, so one; empty cells as "-", so that words can be counted.
func table(w io.Writer, cols []column, rows [][]string, titles bool) error {
	width := make([]int, len(cols))
	for i, c := range cols {
		if titles {
			width[i] = len(c.title)
		}
		for _, r := range rows {
			if r[i] == "" {
				r[i] = "-"
			}
			width[i] = max(width[i], utf8.RuneCountInString(r[i]))
		}
	}
	var b strings.Builder
	line := func(cells func(i int) string) {
		for i, c := range cols {
			cell := cells(i)
			pad := strings.Repeat(" ", width[i]-utf8.RuneCountInString(cell))
			switch {
			case c.right:
				b.WriteString(pad + cell)
			case i < len(cols)-1:
				b.WriteString(cell + pad)
			default:
				b.WriteString(cell)
			}
			if i < len(cols)-1 {
				b.WriteByte(' ')
			}
		}
		b.WriteByte('\n')
	}
	if titles {
		line(func(i int) string { return cols[i].title })
	}
	for _, r := range rows {
		line(func(i int) string { return r[i] })
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// node is a branch of a printed tree.
type node struct {
	text string
	kids []node
}

// add appends a branch and returns it, to be filled.
func (n *node) add(format string, args ...any) *node {
	n.kids = append(n.kids, node{text: fmt.Sprintf(format, args...)})
	return &n.kids[len(n.kids)-1]
}

func (n *node) print(w io.Writer) error {
	var b strings.Builder
	b.WriteString(n.text + "\n")
	n.branches(&b, "")
	_, err := io.WriteString(w, b.String())
	return err
}

func (n *node) branches(b *strings.Builder, indent string) {
	for i := range n.kids {
		kid, mark, below := &n.kids[i], "├─ ", "│  "
		if i == len(n.kids)-1 {
			mark, below = "└─ ", "   "
		}
		b.WriteString(indent + mark + kid.text + "\n")
		kid.branches(b, indent+below)
	}
}

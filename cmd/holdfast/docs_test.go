package main

import (
	"io"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"

	"holdfast/control"
)

// TestDocs: docs/cli.md is a contract, so it has every command, flag and JSON field.
func TestDocs(t *testing.T) {
	text, err := os.ReadFile("../../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	has := func(what, form string) {
		t.Helper()
		if !regexp.MustCompile(form).Match(text) {
			t.Errorf("docs/cli.md has nothing of %s", what)
		}
	}
	var command func(c *cli.Command, path string)
	command = func(c *cli.Command, path string) {
		path = strings.TrimSpace(path + " " + c.Name)
		if c.Hidden {
			return
		}
		if len(c.Subcommands) == 0 {
			has("command "+path, `(?m)holdfast `+path+`\b`)
		}
		for _, f := range c.Flags {
			has("flag --"+f.Names()[0]+" of "+path, `--`+f.Names()[0]+`\b|\[-`+f.Names()[0][:1]+`\]`)
		}
		for _, sub := range c.Subcommands {
			command(sub, path)
		}
	}
	for _, c := range newApp(io.Discard, io.Discard).Commands {
		command(c, "")
	}
	seen := map[reflect.Type]bool{}
	var fields func(typ reflect.Type)
	fields = func(typ reflect.Type) {
		switch typ.Kind() {
		case reflect.Slice, reflect.Pointer, reflect.Map:
			fields(typ.Elem())
			return
		case reflect.Struct:
		default:
			return
		}
		if seen[typ] || typ.PkgPath() == "time" {
			return
		}
		seen[typ] = true
		for i := range typ.NumField() {
			f := typ.Field(i)
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			if name != "" && name != "-" {
				has("the JSON field "+typ.String()+"."+name, "`"+name+"`")
			}
			if f.IsExported() {
				fields(f.Type)
			}
		}
	}
	fields(reflect.TypeFor[control.Snapshot]())
	if len(seen) < 10 {
		t.Errorf("looked at %d types only", len(seen))
	}
}

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
	"pgregory.net/rapid"
)

// outcome is what cli made of an arranged command line.
type outcome struct {
	Command string
	Flags   map[string]any // those that were set, by first name
	Args    []string
}

// interpret runs a command line with every action replaced by a recorder.
func interpret(args []string) (*outcome, error) {
	app := newApp(io.Discard, io.Discard)
	var got *outcome
	var record func(c *cli.Command)
	record = func(c *cli.Command) {
		c.Action = func(ctx *cli.Context) error {
			got = &outcome{Command: strings.TrimPrefix(ctx.Command.HelpName, "holdfast "), Flags: map[string]any{}, Args: ctx.Args().Slice()}
			for _, f := range c.Flags {
				name := f.Names()[0]
				if !ctx.IsSet(name) {
					continue
				}
				if v, ok := ctx.Generic(name).(*fileNames); ok {
					got.Flags[name] = []string(*v)
				} else {
					got.Flags[name] = ctx.Value(name)
				}
			}
			return nil
		}
		for _, sub := range c.Subcommands {
			record(sub)
		}
	}
	for _, c := range app.Commands {
		record(c)
	}
	ordered, err := arrange(app, args)
	if err != nil {
		return nil, err
	}
	if err := app.Run(append([]string{"holdfast"}, ordered...)); err != nil {
		return nil, err
	}
	return got, nil
}

// noRunDir takes the variable out of the environment for a test.
func noRunDir(t *testing.T) {
	t.Setenv("HOLDFAST_RUN_DIR", "") // for the restoring
	os.Unsetenv("HOLDFAST_RUN_DIR")
}

func flags(kv ...any) map[string]any {
	m := map[string]any{}
	for i := 0; i < len(kv); i += 2 {
		m[kv[i].(string)] = kv[i+1]
	}
	return m
}

func TestArrange(t *testing.T) {
	noRunDir(t)
	for _, tt := range []struct {
		line string // words separated by spaces; ~ for the empty word, _ for a space in one
		want outcome
	}{
		{"remove v", outcome{"remove", flags(), []string{"v"}}},
		{"remove v --force", outcome{"remove", flags("force", true), []string{"v"}}},
		{"remove --force v", outcome{"remove", flags("force", true), []string{"v"}}},
		{"remove -f v", outcome{"remove", flags("force", true), []string{"v"}}},
		{"rm v -f", outcome{"remove", flags("force", true), []string{"v"}}},
		{"remove v -force", outcome{"remove", flags("force", true), []string{"v"}}},
		{"remove v --force=false", outcome{"remove", flags("force", false), []string{"v"}}},
		{"remove -- --force", outcome{"remove", flags(), []string{"--force"}}},
		{"remove v -- --force", outcome{"remove", flags(), []string{"v", "--force"}}},
		{"remove --force -- -v --", outcome{"remove", flags("force", true), []string{"-v", "--"}}},
		{"remove -", outcome{"remove", flags(), []string{"-"}}},
		{"remove help", outcome{"remove", flags(), []string{"help"}}},
		{"show h", outcome{"show", flags(), []string{"h"}}},
		{"show list --json", outcome{"show", flags("json", true), []string{"list"}}},
		{"remove v --run-dir /r", outcome{"remove", flags("run-dir", "/r"), []string{"v"}}},
		{"remove v --run-dir=/r", outcome{"remove", flags("run-dir", "/r"), []string{"v"}}},
		{"remove v --run-dir=/a=b", outcome{"remove", flags("run-dir", "/a=b"), []string{"v"}}},
		{"--run-dir /r remove v", outcome{"remove", flags("run-dir", "/r"), []string{"v"}}},
		{"--run-dir=/r remove v --run-dir /s", outcome{"remove", flags("run-dir", "/s"), []string{"v"}}},
		{"remove --run-dir --force v", outcome{"remove", flags("run-dir", "--force"), []string{"v"}}},
		{"remove --run-dir -- v", outcome{"remove", flags("run-dir", "--"), []string{"v"}}},
		{"create v --image a --image b", outcome{"create", flags("image", []string{"a", "b"}), []string{"v"}}},
		{"create --image a v -i b -image=c", outcome{"create", flags("image", []string{"a", "b", "c"}), []string{"v"}}},
		{"create --image a,b v --image=-i", outcome{"create", flags("image", []string{"a,b", "-i"}), []string{"v"}}},
		{"create --image raw@x --image _y v", outcome{"create", flags("image", []string{"raw@x", " y"}), []string{"v"}}},
		{"create v --queues 2 --depth=64 -r --data-path copy", outcome{"create", flags("queues", 2, "depth", 64, "read-only", true, "data-path", "copy"), []string{"v"}}},
		{"create v --queues -1", outcome{"create", flags("queues", -1), []string{"v"}}},
		{"create v --queues 1 --queues 2", outcome{"create", flags("queues", 2), []string{"v"}}},
		{"image create f --size 10G", outcome{"image create", flags("size", "10G"), []string{"f"}}},
		{"image create --size 10G f --cluster-size=1M --format 1 --backing b", outcome{"image create", flags("size", "10G", "cluster-size", "1M", "format", 1, "backing", "b"), []string{"f"}}},
		{"image check a b --repair c", outcome{"image check", flags("repair", true), []string{"a", "b", "c"}}},
		{"image convert s d --to raw --from ploop", outcome{"image convert", flags("to", "raw", "from", "ploop"), []string{"s", "d"}}},
		{"image map -- a --json", outcome{"image map", flags(), []string{"a", "--json"}}},
		{"list ~", outcome{"list", flags(), []string{""}}},
		{"list", outcome{"list", flags(), nil}},
		{"--version", outcome{"version", flags(), nil}},
		{"-v", outcome{"version", flags(), nil}},
	} {
		got, err := interpret(words(tt.line))
		if err != nil || got == nil {
			t.Errorf("%s: %+v, %v", tt.line, got, err)
			continue
		}
		if got.Command != tt.want.Command || !reflect.DeepEqual(got.Flags, tt.want.Flags) || !slices.Equal(got.Args, tt.want.Args) {
			t.Errorf("%s:\ngot  %+v\nwant %+v", tt.line, *got, tt.want)
		}
	}
}

func words(line string) []string {
	out := strings.Fields(line)
	for i, w := range out {
		out[i] = strings.ReplaceAll(strings.ReplaceAll(w, "~", ""), "_", " ")
	}
	return out
}

func TestUsageErrors(t *testing.T) {
	t.Setenv("HOLDFAST_RUN_DIR", t.TempDir())
	for _, tt := range []struct {
		line, want string
		code       int
	}{
		{"", "no command", 2},
		{"--", "no command", 2},
		{"frobnicate", `there is no command "frobnicate"`, 2},
		{"image", "which of create, info, map, check, convert?", 2},
		{"image frob", `there is no command "image frob"`, 2},
		{"--json list", `flag "--json" before the command`, 2},
		{"--run-dir", "needs a value", 2},
		{"--run-dir /r image info f", `has no flag "--run-dir"`, 2},
		{"list --frob", `list has no flag "--frob"`, 2},
		{"list ---json", `has no flag`, 2},
		{"list --=x", "neither a flag nor an argument", 2},
		{"list --run-dir", "flag --run-dir needs a value", 2},
		{"list --run-dir=", "needs a value that is not empty", 2},
		{"list --run-dir ~", "needs a value that is not empty", 2},
		{"list extra", `list: "extra" is one argument too many`, 2},
		{"remove", "remove: NAME is missing", 2},
		{"remove ~", "argument 1 is empty", 2},
		{"remove a b", `"b" is one argument too many`, 2},
		{"remove v --force=perhaps", "--force", 2},
		{"create", "NAME is missing", 2},
		{"create v", "--image is missing", 2},
		{"create v --image raw@", "raw@", 2},
		{"create v --image f --queues two", `create: flag --queues: "two" is not a whole number`, 2},
		{"create v --image f --queues 0", "--queues 0", 2},
		{"create v --image f --depth -5", "--depth -5", 2},
		{"create v --image f --logical-block-size 8K", "--logical-block-size", 2},
		{"create v --image f --logical-block-size 513", "--logical-block-size", 2},
		{"create v --image f --logical-block-size 3K", "--logical-block-size", 2},
		{"create v --image f --logical-block-size x", "--logical-block-size", 2},
		{"create ../v --image f", "../v", 2},
		{"create v --image f --data-path fast", "fast", 2},
		{"create v --image \xff", "UTF-8", 2},
		{"daemon x", `"x" is one argument too many`, 2},
		{"daemon --log-level loud", "loud", 2},
		{"daemon --log-format xml", "xml", 2},
		{"image create f", "--size is missing", 2},
		{"image create f --size 10X", "10X", 2},
		{"image create f --size 0", "positive", 2},
		{"image create f --size 1000", "multiple of 512", 2},
		{"image create f --size 1G --format 3", "--format 3", 2},
		{"image create f --size 1G --backing raw@", "raw@", 2},
		{"image info", "FILE is missing", 2},
		{"image info a b", "one argument too many", 2},
		{"image map", "FILE is missing", 2},
		{"image convert a", "DST is missing", 2},
		{"image convert a b --from vmdk", "vmdk", 2},
		{"image convert raw@a b --from ploop", "--from ploop", 2},
		{"image convert a b --to raw --format 1", "DST is to be raw", 2},
		{"completion fish", "fish", 2},
		// 2 means corrupt there, so a mistake is "could not check".
		{"image check", "FILE is missing", 1},
		{"image check --frob f", "has no flag", 1},
		{"image check f --repair=x", "--repair", 1},
		{"image check raw@", "raw@", 1},
	} {
		var out, errs bytes.Buffer
		code := run(words(tt.line), &out, &errs)
		msg := errs.String()
		if code != tt.code || out.Len() != 0 || !strings.Contains(msg, tt.want) ||
			!strings.HasPrefix(msg, "holdfast: ") || strings.Count(msg, "\n") != 1 {
			t.Errorf("%q: exit %d, stdout %q, stderr %q", tt.line, code, &out, msg)
		}
	}
}

func TestHelp(t *testing.T) {
	for line, want := range map[string]string{
		"help": "COMMANDS", "--help": "COMMANDS", "-h": "COMMANDS",
		"help create": "--image", "create --help": "--image", "create v --image f -h": "--image", "help image check": "--repair",
		"image --help": "convert",
	} {
		var out, errs bytes.Buffer
		if code := run(words(line), &out, &errs); code != 0 || errs.Len() != 0 || !strings.Contains(out.String(), want) {
			t.Errorf("%s: exit %d, %q, %q", line, code, &out, &errs)
		}
	}
}

// TestArrangeAnyOrder: however flags and arguments are spelled and mixed, what
// the command sees is the same.
func TestArrangeAnyOrder(t *testing.T) {
	noRunDir(t)
	text := rapid.StringMatching(`[-=,.@ a-z\\"é\n]{1,6}`)
	rapid.Check(t, func(t *rapid.T) {
		want := outcome{Command: "create", Flags: map[string]any{}}
		var groups [][]string // words that stay together, in an order of their own
		spell := func(names []string, value string) []string {
			name := rapid.SampledFrom(names).Draw(t, "spelling")
			if rapid.Bool().Draw(t, "attached") {
				return []string{name + "=" + value}
			}
			return []string{name, value}
		}
		for _, image := range rapid.SliceOfN(text, 0, 3).Draw(t, "images") {
			images, _ := want.Flags["image"].([]string)
			want.Flags["image"] = append(images, image)
			groups = append(groups, spell([]string{"--image", "-image", "-i", "--i"}, image))
		}
		if n := rapid.IntRange(-1, 5).Draw(t, "queues"); n != 0 {
			want.Flags["queues"] = n
			groups = append(groups, spell([]string{"--queues", "-queues"}, fmt.Sprint(n)))
		}
		if rapid.Bool().Draw(t, "ro") {
			want.Flags["read-only"] = true
			groups = append(groups, []string{rapid.SampledFrom([]string{"--read-only", "-r", "--read-only=true", "-r=1"}).Draw(t, "ro spelling")})
		}
		plain := rapid.SliceOfN(rapid.StringMatching(`([a-z.@][-=a-z]{0,4})?`), 0, 3).Draw(t, "args")
		literal := rapid.SliceOfN(text, 0, 3).Draw(t, "args after --")
		want.Args = append(slices.Clone(plain), literal...)

		// Merge the arguments into the flags at random places, order kept.
		line := []string{"create"}
		for len(groups)+len(plain) > 0 {
			if len(plain) == 0 || len(groups) > 0 && rapid.Bool().Draw(t, "flag next") {
				line, groups = append(line, groups[0]...), groups[1:]
			} else {
				line, plain = append(line, plain[0]), plain[1:]
			}
		}
		if len(literal) > 0 {
			line = append(append(line, "--"), literal...)
		}
		got, err := interpret(line)
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if got.Command != want.Command || !reflect.DeepEqual(got.Flags, want.Flags) || !slices.Equal(got.Args, want.Args) {
			t.Fatalf("%q:\ngot  %+v\nwant %+v", line, *got, want)
		}
	})
}

// FuzzArrange: any command line is either refused as a mistake in one line, or
// loses no word.
func FuzzArrange(f *testing.F) {
	for _, s := range []string{"remove v --force", "create v -i a --image=b --", "--run-dir /x list", "image check -- -a", "help image", "-- list", "list --json=", "show - --"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		in := strings.Split(s, " ")
		app := newApp(io.Discard, io.Discard)
		out, err := arrange(app, in)
		var usage *usageError
		if err != nil {
			if !errors.As(err, &usage) || strings.Contains(oneLine(err.Error()), "\n") {
				t.Errorf("%q: %v", in, err)
			}
			return
		}
		if out[len(out)-1] == "--help" || slices.Equal(out, []string{"help"}) || slices.Equal(out, []string{"version"}) {
			return
		}
		i := slices.Index(out, "--")
		if i < 0 {
			t.Fatalf("%q: %q has no --", in, out)
		}
		// The arguments are among the words, in their order.
		rest := in
		for _, a := range out[i+1:] {
			j := slices.Index(rest, a)
			if j < 0 {
				t.Fatalf("%q: argument %q out of nowhere or out of order in %q", in, a, out)
			}
			rest = rest[j+1:]
		}
		got, err := interpret(in)
		if err != nil && !errors.As(err, &usage) {
			t.Fatalf("%q: cli doesn't take %q: %v", in, out, err)
		}
		if err == nil && !slices.Equal(got.Args, out[i+1:]) {
			t.Fatalf("%q: cli saw %q, arranged %q", in, got.Args, out)
		}
	})
}

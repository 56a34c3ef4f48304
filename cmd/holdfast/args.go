package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// arrange puts a command line in the order that the cli package understands:
//
//	command [subcommand] --flag=value … -- argument …
//
// cli by itself takes everything after the first argument for an argument, and
// "holdfast remove NAME --force" would then remove nothing and look for a
// device called "--force". So the flags are gathered here, by the command's own
// definitions, under their first name and with their value attached. After that
// cli has nothing left to misunderstand: unknown flags, missing values and
// unknown commands are found here, as one-line errors.
//
// Rules: "--" ends the flags. "-" alone is an argument. A value is what follows
// the first "=", or the next word whatever it looks like. --run-dir may also
// stand before the command, as people write it.
func arrange(app *cli.App, args []string) ([]string, error) {
	l := line{commands: app.Commands}
	for i := 0; i < len(args); i++ {
		word := args[i]
		switch {
		case l.literal || word == "-" || !strings.HasPrefix(word, "-"):
			if l.leaf() {
				l.args = append(l.args, word)
			} else if err := l.descend(word); err != nil {
				return nil, err
			}
		case word == "--":
			l.literal = true
		default:
			used, err := l.flag(word, args[i+1:])
			if err != nil {
				return nil, err
			}
			if used {
				i++
			}
		}
	}
	return l.finish()
}

// line is a command line that is being taken apart.
type line struct {
	commands []*cli.Command // to choose from; nil below a command without any
	command  *cli.Command
	path     []string
	flags    []string
	args     []string
	runDir   []string // given before the command
	literal  bool     // after "--"
	help     bool     // asked for, by flag or by the help command
	version  bool
}

func (l *line) leaf() bool { return l.command != nil && len(l.command.Subcommands) == 0 }

// name is the command so far, for messages, which begin with the program's.
func (l *line) name() string { return strings.Join(l.path, " ") }

func (l *line) descend(word string) error {
	if l.command == nil && word == "help" {
		l.help = true
		return nil
	}
	i := slices.IndexFunc(l.commands, func(c *cli.Command) bool { return c.HasName(word) })
	if i < 0 {
		return usagef("there is no command %q; 'holdfast help%s' lists them", strings.TrimSpace(l.name()+" "+word), strings.TrimSuffix(" "+l.name(), " "))
	}
	l.command = l.commands[i]
	l.commands = l.command.Subcommands
	l.path = append(l.path, l.command.Name)
	return nil
}

// flag takes one flag word, and says whether the word after it was its value.
func (l *line) flag(word string, rest []string) (used bool, err error) {
	name, value, attached := strings.Cut(strings.TrimPrefix(word[1:], "-"), "=")
	switch {
	case name == "":
		return false, usagef("%q is neither a flag nor an argument", word)
	case !attached && (name == "help" || name == "h"):
		l.help = true
		return false, nil
	case !attached && l.command == nil && (name == "version" || name == "v"):
		l.version = true
		return false, nil
	}
	var def cli.Flag
	if l.command == nil {
		if name != runDirName {
			return false, usagef("flag %q before the command: only --run-dir may stand there", word)
		}
		def = runDirFlag()
	} else if def = l.find(name); def == nil {
		return false, usagef("%s has no flag %q; '%s --help' lists them", l.name(), "--"+name, "holdfast "+l.name())
	}
	canonical := "--" + def.Names()[0]
	if d, ok := def.(cli.DocGenerationFlag); ok && !d.TakesValue() {
		if attached {
			canonical += "=" + value
		}
		l.flags = append(l.flags, canonical)
		return false, nil
	}
	if !attached {
		if len(rest) == 0 {
			return false, usagef("flag %s needs a value", canonical)
		}
		value, used = rest[0], true
	}
	if value == "" {
		return false, usagef("flag %s needs a value that is not empty", canonical)
	}
	if err := checkValue(def, value); err != nil {
		return false, usagef("%s: flag %s: %v", l.name(), canonical, err)
	}
	if l.command == nil {
		l.runDir = []string{canonical + "=" + value}
	} else {
		l.flags = append(l.flags, canonical+"="+value)
	}
	return used, nil
}

// find is the command's flag of that name, or nil.
func (l *line) find(name string) cli.Flag {
	for _, f := range l.command.Flags {
		if slices.Contains(f.Names(), name) {
			return f
		}
	}
	return nil
}

func (l *line) finish() ([]string, error) {
	switch {
	case l.help && l.command == nil:
		return []string{"help"}, nil
	case l.help:
		return append(l.path, "--help"), nil
	case l.version:
		return []string{"version"}, nil
	case l.command == nil:
		return nil, usagef("no command; 'holdfast help' lists them")
	case !l.leaf():
		var names []string
		for _, c := range l.commands {
			names = append(names, c.Name)
		}
		return nil, usagef("%s: which of %s?", l.name(), strings.Join(names, ", "))
	}
	if len(l.runDir) > 0 && l.find(runDirName) == nil {
		return nil, usagef("%s has no flag \"--run-dir\"", l.name())
	}
	// In front, so that one given after the command wins.
	out := append(l.path, l.runDir...)
	out = append(out, l.flags...)
	out = append(out, "--")
	return append(out, l.args...), nil
}

// commandName is the command for messages, which begin with the program's name.
func commandName(c *cli.Context) string { return strings.TrimPrefix(c.Command.HelpName, "holdfast ") }

// arguments checks the number of arguments: names are theirs. One in brackets may be
// left out, and the last may be repeated if it ends in "…".
func arguments(c *cli.Context, names ...string) ([]string, error) {
	args := c.Args().Slice()
	many := len(names) > 0 && strings.HasSuffix(names[len(names)-1], "…")
	switch {
	case len(args) < len(names) && !strings.HasPrefix(names[len(args)], "["):
		return nil, usagef("%s: %s is missing", commandName(c), strings.TrimSuffix(names[len(args)], "…"))
	case len(args) > len(names) && !many:
		return nil, usagef("%s: %q is one argument too many", commandName(c), args[len(names)])
	}
	for i, a := range args {
		if a == "" {
			return nil, usagef("%s: argument %d is empty", commandName(c), i+1)
		}
	}
	return args, nil
}

// deviceArguments is arguments for a command whose first one is the name of a device.
func deviceArguments(c *cli.Context, names ...string) ([]string, error) {
	args, err := arguments(c, names...)
	if err == nil {
		args[0], err = deviceName(args[0])
	}
	return args, err
}

// usageError is a command line that makes no sense.
type usageError struct{ msg string }

func (e *usageError) Error() string { return e.msg }

func usagef(format string, args ...any) error { return &usageError{fmt.Sprintf(format, args...)} }

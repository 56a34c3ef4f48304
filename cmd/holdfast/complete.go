package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"holdfast/api"
	"holdfast/ploop"
)

// The scripts hand the words so far to "holdfast __complete", which prints
// ":files" or ":words" and then one candidate a line. So the knowledge of
// commands and flags is in one place, and device names are the manager's.
const bashScript = `# bash completion for holdfast: source <(holdfast completion bash)
_holdfast() {
    local cur=${COMP_WORDS[COMP_CWORD]} line kind=
    COMPREPLY=()
    while IFS= read -r line; do
        if [[ -z $kind ]]; then
            kind=$line
        elif [[ $line == "$cur"* ]]; then
            COMPREPLY+=("$line")
        fi
    done < <(command holdfast __complete -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
    if [[ $kind == :files ]]; then
        compopt -o default 2>/dev/null
    fi
}
complete -F _holdfast holdfast
`

const zshScript = `#compdef holdfast
# zsh completion for holdfast: source <(holdfast completion zsh)
_holdfast() {
    local -a out
    out=("${(@f)$(command holdfast __complete -- "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    if [[ ${out[1]} == :files ]]; then
        _files
    elif (( ${#out} > 1 )); then
        compadd -- "${(@)out[2,-1]}"
    fi
}
compdef _holdfast holdfast
`

func completionCommand() *cli.Command {
	return &cli.Command{
		Name: "completion", Usage: "print a completion script for a shell", ArgsUsage: "bash|zsh",
		Action: func(c *cli.Context) error {
			args, err := arguments(c, "SHELL")
			if err != nil {
				return err
			}
			scripts := map[string]string{"bash": bashScript, "zsh": zshScript}
			script, ok := scripts[args[0]]
			if !ok {
				return usagef("%s: there is a script for bash and for zsh, not for %q", commandName(c), args[0])
			}
			_, err = fmt.Fprint(c.App.Writer, script)
			return err
		},
	}
}

func completeCommand() *cli.Command {
	return &cli.Command{
		Name: "__complete", Hidden: true,
		Action: func(c *cli.Context) error {
			files, words := complete(c.App, c.Args().Slice())
			kind := ":words"
			if files {
				kind = ":files"
			}
			fmt.Fprintln(c.App.Writer, kind)
			for _, w := range words {
				fmt.Fprintln(c.App.Writer, w)
			}
			return nil
		},
	}
}

// complete says what the last of words may become: the name of a file, or one
// of some candidates.
func complete(app *cli.App, words []string) (files bool, candidates []string) {
	if len(words) == 0 {
		words = []string{""}
	}
	words = joinEquals(words)
	last := words[len(words)-1]
	l := line{commands: app.Commands}
	runDir, pending := "", "" // pending: the flag whose value comes next
	for _, word := range words[:len(words)-1] {
		switch {
		case pending != "":
			if pending == runDirName {
				runDir = word
			}
			pending = ""
		case l.literal || word == "-" || !strings.HasPrefix(word, "-"):
			if l.leaf() {
				l.args = append(l.args, word)
			} else if l.descend(word) != nil {
				return false, nil
			}
		case word == "--":
			l.literal = true
		default:
			name, value, attached := strings.Cut(strings.TrimLeft(word, "-"), "=")
			var f cli.Flag = runDirFlag()
			if l.command != nil {
				f = l.find(name)
			}
			d, ok := f.(cli.DocGenerationFlag)
			switch {
			case !ok || !d.TakesValue():
			case !attached:
				pending = f.Names()[0]
			case name == runDirName:
				runDir = value
			}
		}
	}
	switch {
	case pending == "device":
		return namedDevice(runDir, last)
	case pending == "output":
		return false, matching(outputWords(last), last)
	case pending != "":
		return takesFile[pending], matching(flagValues[pending], last)
	case !l.literal && strings.HasPrefix(last, "-"):
		return false, matching(l.flagNames(), last)
	case !l.leaf():
		return false, matching(l.commandNames(), last)
	}
	return l.argument(runDir, last)
}

// argument says what the command's next argument may be.
func (l *line) argument(runDir, last string) (files bool, candidates []string) {
	switch command := l.path[0]; command {
	case "show", "remove", "recover", "why", "attach", "detach", "standby", "replace", "wait":
		switch {
		case len(l.args) == 0:
			return namedDevice(runDir, last)
		case command == "wait":
			return false, matching(afterComma(api.States, last), last)
		case len(l.args) > 1:
			return false, nil
		case command == "standby":
			return false, matching([]string{"on", "off", "status"}, last)
		}
		return command == "replace", nil
	case "standby-check":
		if len(l.args) > 0 {
			return false, nil
		}
		return false, matching([]string{"on", "off", "status"}, last)
	case "completion":
		if len(l.args) > 0 {
			return false, nil
		}
		return false, matching([]string{"bash", "zsh"}, last)
	case "image":
		return true, nil
	}
	return false, nil // a new name, or nothing
}

// namedDevice is how a device may be called: by its name, or by a path.
func namedDevice(runDir, last string) (files bool, candidates []string) {
	if strings.Contains(last, "/") {
		return true, nil
	}
	return false, matching(deviceNames(runDir), last)
}

// afterComma are words, behind those that a list with commas has already.
func afterComma(words []string, last string) []string {
	i := strings.LastIndexByte(last, ',')
	if i < 0 {
		return words
	}
	var out []string
	for _, w := range words {
		out = append(out, last[:i+1]+w)
	}
	return out
}

func outputWords(last string) []string {
	if rest, more := strings.CutPrefix(last, "+"); more {
		var out []string
		for _, w := range afterComma(columnNames(), rest) {
			out = append(out, "+"+w)
		}
		return out
	}
	if !strings.Contains(last, ",") {
		return append(columnNames(), "all", "help")
	}
	return afterComma(columnNames(), last)
}

// joinEquals undoes bash's splitting of --flag=value into three words: it
// becomes --flag value, which means the same.
func joinEquals(words []string) []string {
	var out []string
	for i, w := range words {
		switch {
		case w == "=" && i > 0 && strings.HasPrefix(words[i-1], "--"):
			if i == len(words)-1 {
				out = append(out, "")
			}
		default:
			out = append(out, w)
		}
	}
	return out
}

func (l *line) flagNames() []string {
	names := []string{"--help"}
	if l.command == nil {
		return append(names, "--run-dir", "--version")
	}
	for _, f := range l.command.Flags { // cli may have added its help flag
		names = append(names, "--"+f.Names()[0])
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func (l *line) commandNames() []string {
	var names []string
	for _, c := range l.commands {
		if !c.Hidden {
			names = append(names, c.Name)
		}
	}
	return names
}

// flagValues are the words that a flag takes.
var flagValues = map[string][]string{
	"data-path":          {"auto", "copy", "zero-copy"},
	"logical-block-size": {"512", "1K", "2K", "4K"},
	"resume":             {api.ResumeManual, api.ResumeReopen},
	"recover-policy":     {api.RecoverWait, api.RecoverFail},
	"targets":            {"lio", "scst", "tgt", "none"},
	"from":               {"raw", "ploop"},
	"to":                 {"raw", "ploop"},
	"allow":              {ploop.AllowOlderData, ploop.AllowBeyondDisk, ploop.AllowDataOffset},
	"format":             {"1", "2"},
	"log-format":         {"json", "console"},
	"launcher":           {launcherAuto, launcherSystemd, launcherFork},
	"log-level":          {"debug", "info", "warn", "error"},
}

// takesFile are the flags that take the name of a file or directory.
var takesFile = map[string]bool{
	"image": true, "backing": true, "on-standby": true, "on-resumed": true, "binary": true, "serve-binary": true,
	"run-dir": true, "state-dir": true, "configfs": true, "scst-root": true,
}

// deviceNames asks the manager, shortly: somebody's cursor is waiting.
func deviceNames(runDir string) []string {
	if runDir == "" {
		runDir = api.DefaultRunDir
		if env := os.Getenv("HOLDFAST_RUN_DIR"); env != "" {
			runDir = env
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	snap, err := api.NewClient(runDir).Brief(ctx)
	if err != nil {
		return nil
	}
	var names []string
	for _, d := range snap.Devices {
		names = append(names, d.Name)
	}
	return names
}

func matching(words []string, prefix string) []string {
	var out []string
	for _, w := range words {
		if strings.HasPrefix(w, prefix) {
			out = append(out, w)
		}
	}
	return out
}

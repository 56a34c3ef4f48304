package debian

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// aptSource is one repository of the machine's apt configuration, reduced to
// what is needed to write another one for the same mirror.
type aptSource struct {
	URI        string
	Suite      string
	Components []string
	SignedBy   string // a key ring's path, empty if the source names none
}

// debianSuites are the names by which a source is known to be Debian's own.
var debianSuites = []string{
	"bullseye", "bookworm", "trixie", "forky", "duke", "sid",
	"oldoldstable", "oldstable", "stable", "testing", "unstable",
}

const defaultKeyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// parseDeb822 parses a .sources file.
func parseDeb822(text string) []aptSource {
	var out []aptSource
	for _, stanza := range Stanzas(text) {
		if !slices.Contains(strings.Fields(stanza["types"]), "deb") || strings.EqualFold(stanza["enabled"], "no") {
			continue
		}
		signedBy := stanza["signed-by"]
		if !strings.HasPrefix(signedBy, "/") || strings.ContainsAny(signedBy, " \n") {
			signedBy = "" // the key itself, or several key rings
		}
		for _, uri := range strings.Fields(stanza["uris"]) {
			for _, suite := range strings.Fields(stanza["suites"]) {
				out = append(out, aptSource{uri, suite, strings.Fields(stanza["components"]), signedBy})
			}
		}
	}
	return out
}

// Stanzas splits deb822 text, which apt also prints for packages, into
// stanzas of fields with names in lower case.
func Stanzas(text string) []map[string]string {
	var out []map[string]string
	cur, field := map[string]string{}, ""
	flush := func() {
		if len(cur) > 0 {
			out = append(out, cur)
		}
		cur, field = map[string]string{}, ""
	}
	for _, line := range strings.Split(text, "\n") {
		switch {
		case strings.HasPrefix(line, "#"):
		case strings.TrimSpace(line) == "":
			flush()
		case line[0] == ' ' || line[0] == '\t':
			if field != "" {
				cur[field] += "\n" + strings.TrimSpace(line)
			}
		default:
			name, value, ok := strings.Cut(line, ":")
			if ok {
				field = strings.ToLower(name)
				cur[field] = strings.TrimSpace(value)
			}
		}
	}
	flush()
	return out
}

// parseOneLine parses a .list file.
func parseOneLine(text string) []aptSource {
	var out []aptSource
	for _, line := range strings.Split(text, "\n") {
		line, _, _ = strings.Cut(line, "#")
		line = strings.TrimSpace(line)
		rest, ok := strings.CutPrefix(line, "deb")
		if !ok || rest == "" || (rest[0] != ' ' && rest[0] != '\t') {
			continue
		}
		rest = strings.TrimSpace(rest)
		signedBy := ""
		if strings.HasPrefix(rest, "[") {
			opts, after, ok := strings.Cut(rest[1:], "]")
			if !ok {
				continue
			}
			for _, o := range strings.Fields(opts) {
				if v, ok := strings.CutPrefix(o, "signed-by="); ok && strings.HasPrefix(v, "/") && !strings.Contains(v, ",") {
					signedBy = v
				}
			}
			rest = after
		}
		if f := strings.Fields(rest); len(f) >= 3 {
			out = append(out, aptSource{f[0], f[1], f[2:], signedBy})
		}
	}
	return out
}

// pickMirror chooses the source whose mirror carries Debian's kernels: one
// with a Debian suite and the component main, and not the security archive,
// which doesn't carry the suites that we ask for.
func pickMirror(sources []aptSource) (aptSource, bool) {
	best, score := aptSource{}, 0
	for _, s := range sources {
		base := strings.TrimSuffix(strings.TrimSuffix(s.Suite, "-updates"), "-backports")
		if !slices.Contains(debianSuites, base) || !slices.Contains(s.Components, "main") {
			continue
		}
		n := 1
		if base == s.Suite {
			n = 2
		}
		if n > score {
			best, score = s, n
		}
	}
	return best, score > 0
}

// machineMirror finds the mirror in the configuration under etc (/etc/apt).
func machineMirror(etc string) (aptSource, error) {
	files := []string{filepath.Join(etc, "sources.list")}
	for _, pattern := range []string{"*.list", "*.sources"} {
		found, _ := filepath.Glob(filepath.Join(etc, "sources.list.d", pattern))
		files = append(files, found...)
	}
	var sources []aptSource
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			continue // there may be none of either kind, and others may be unreadable
		}
		if strings.HasSuffix(f, ".sources") {
			sources = append(sources, parseDeb822(string(text))...)
		} else {
			sources = append(sources, parseOneLine(string(text))...)
		}
	}
	m, ok := pickMirror(sources)
	if !ok {
		return m, fmt.Errorf("no Debian mirror in %s (a source with a Debian suite and component main): set HOLDFAST_VM_MIRROR to a mirror's URL", etc)
	}
	return m, nil
}

// sourcesList is the text of a private sources.list for the suites.
func sourcesList(m aptSource, suites []string) string {
	keyring := m.SignedBy
	if keyring == "" {
		keyring = defaultKeyring
	}
	var b strings.Builder
	for _, s := range suites {
		fmt.Fprintf(&b, "deb [arch=amd64 signed-by=%s] %s %s main\n", keyring, m.URI, s)
	}
	return b.String()
}

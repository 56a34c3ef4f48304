package debian

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestParseDeb822(t *testing.T) {
	got := parseDeb822(`Types: deb deb-src
# a comment between fields
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/some.gpg

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main

Types: deb
URIs: http://inline.example/debian
Suites: sid
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc

Types: deb-src
URIs: http://src.example/debian
Suites: sid
Components: main
`)
	want := []aptSource{
		{"http://mirror.example/debian", "bookworm", []string{"main", "contrib"}, "/usr/share/keyrings/some.gpg"},
		{"http://mirror.example/debian", "bookworm-updates", []string{"main", "contrib"}, "/usr/share/keyrings/some.gpg"},
		{"http://inline.example/debian", "sid", []string{"main"}, ""},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

func TestParseOneLine(t *testing.T) {
	got := parseOneLine(`# deb http://no.example/debian sid main
deb http://a.example/debian trixie main non-free # comment
deb-src http://a.example/debian trixie main
deb	[ arch=amd64 signed-by=/k.gpg ] http://b.example/debian bookworm main
debris http://c.example/debian bookworm main
deb http://flat.example/ ./
`)
	want := []aptSource{
		{"http://a.example/debian", "trixie", []string{"main", "non-free"}, ""},
		{"http://b.example/debian", "bookworm", []string{"main"}, "/k.gpg"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

func TestMachineMirror(t *testing.T) {
	etc := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		p := filepath.Join(etc, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("sources.list", "deb http://cloud.example/apt cloud-bookworm main\n")
	if m, err := machineMirror(etc); err == nil {
		t.Errorf("took %v for a Debian mirror", m)
	}
	write("sources.list.d/a.list", "deb http://s.example/debian-security bookworm-security main\ndeb http://u.example/debian bookworm-updates main\n")
	write("sources.list.d/b.sources", "Types: deb\nURIs: http://good.example/debian\nSuites: bookworm\nComponents: main\n")
	m, err := machineMirror(etc)
	if err != nil || m.URI != "http://good.example/debian" {
		t.Fatalf("got %v, %v", m, err)
	}
	list := sourcesList(m, []string{"sid", "trixie"})
	want := "deb [arch=amd64 signed-by=" + defaultKeyring + "] http://good.example/debian sid main\n"
	if !strings.HasPrefix(list, want) || strings.Count(list, "\n") != 2 {
		t.Errorf("sources list:\n%s", list)
	}
}

func TestCompareVersions(t *testing.T) {
	ascending := []string{
		"6.12~rc1-1", "6.12-1", "6.12.9-1", "6.12.95-1~bpo12+1", "6.12.95-1", "6.12.107-1",
		"6.12.107-1+b1", "7.2.12-1~bpo13+1", "7.2.13-1", "1:1.0-1",
	}
	for i, a := range ascending {
		for j, b := range ascending {
			want := 0
			if i < j {
				want = -1
			} else if i > j {
				want = 1
			}
			if got := CompareVersions(a, b); got != want {
				t.Errorf("compare %s with %s: got %d, want %d", a, b, got, want)
			}
		}
	}
	if CompareVersions("1.0a-1", "1.0+-1") != -1 {
		t.Error("letters must sort before other characters")
	}
}

func TestInSeries(t *testing.T) {
	for v, want := range map[string]bool{
		"6.12.95-1": true, "6.12-1": true, "6.12~rc1-1": true, "6.120.1-1": false, "6.1.2-1": false, "16.12-1": false,
	} {
		if got := InSeries(v, "6.12"); got != want {
			t.Errorf("InSeries(%s, 6.12) = %v", v, got)
		}
	}
}

package main

import (
	"bytes"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"

	"holdfast/api"
)

// fakeDaemon answers with the devices vol1, vol2 and other, in a new run
// directory.
func fakeDaemon(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, "control.sock"))
	if err != nil {
		t.Fatal(err)
	}
	var snap api.Snapshot
	for i, name := range []string{"other", "vol1", "vol2"} {
		snap.Devices = append(snap.Devices, api.Device{Status: api.Status{Name: name, ID: i, Path: "/dev/ublkb" + string(rune('0'+i)), Size: 1 << 30, State: "live"}})
	}
	snap.Devices[2].Users = []api.User{{Kind: "mount", Device: "ublkb2", Name: "/mnt/my disk"}, {Kind: "process", Device: "ublkb2", Name: "fio", PID: 7}}
	snap.Devices[0].Problem, snap.Devices[0].Advice = "a problem", "some advice"
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/devices", func(w http.ResponseWriter, _ *http.Request) { json.NewEncoder(w).Encode(snap) })
	srv := &http.Server{Handler: mux}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	return dir
}

func TestList(t *testing.T) {
	dir := fakeDaemon(t)
	var out, errs bytes.Buffer
	if code := run([]string{"list", "--run-dir", dir}, &out, &errs); code != 0 {
		t.Fatalf("exit %d: %s", code, &errs)
	}
	want := `NAME  DEVICE      SIZE RO STATE IMAGES TOP USERS
other /dev/ublkb0   1G  0 live       0 -   -
vol1  /dev/ublkb1   1G  0 live       0 -   -
vol2  /dev/ublkb2   1G  0 live       0 -   "/mnt/my disk",fio:7
`
	if out.String() != want {
		t.Errorf("got\n%swant\n%s", &out, want)
	}
	if !strings.Contains(errs.String(), "holdfast: warning: device other: a problem; some advice\n") {
		t.Errorf("stderr %q", &errs)
	}
}

func TestComplete(t *testing.T) {
	dir := fakeDaemon(t)
	t.Setenv("HOLDFAST_RUN_DIR", dir)
	for _, tt := range []struct {
		line string // the last word is being typed; ~ is the empty word
		want string
	}{
		{"~", ":words daemon create list show remove replace recover upgrade stop standby standby-check attach detach wait why events attr image completion version help"},
		{"rem", ":words remove"},
		{"re", ":words remove replace recover"},
		{"standby vol1 ~", ":words on off status"},
		{"replace vol1 ~", ":files"},
		{"replace vol1 f ~", ":words"},
		{"replace vol1 --level ~", ":words"},
		{"create v --resume ~", ":words manual reopen"},
		{"create v --on-standby ~", ":files"},
		{"create v --standby-timeout ~", ":words"},
		{"daemon --targets ~", ":words lio scst tgt none"},
		{"standby-check ~", ":words on off status"},
		{"standby-check on ~", ":words"},
		{"recover ~", ":words other vol1 vol2"},
		{"wait v", ":words vol1 vol2"},
		{"wait vol1 re", ":words replacing removing recovering removed"},
		{"wait vol1 live,lo", ":words live,lost"},
		{"wait vol1 live lo", ":words lost"},
		{"wait vol1 live --time", ":words --timeout"},
		{"wait vol1 live --timeout ~", ":words"},
		{"list -o na", ":words name"},
		{"list --output he", ":words held help"},
		{"list -o name,he", ":words name,held"},
		{"list -o +he", ":words +held"},
		{"list -o +name,he", ":words +name,held"},
		{"show /dev/ub", ":files"},
		{"create v --recover-policy ~", ":words wait fail"},
		{"create v --recover-timeout ~", ":words"},
		{"daemon --stop-timeout ~", ":words"},
		{"upgrade --binary ~", ":files"},
		{"attach ~", ":words other vol1 vol2"},
		{"detach vol1 --c", ":words --consumer"},
		{"events --device v", ":words vol1 vol2"},
		{"attr ~", ":words get set list"},
		{"image ~", ":words create info map check convert"},
		{"image c", ":words create check convert"},
		{"image info ~", ":files"},
		{"image create --size ~", ":words"},
		{"image create --backing ~", ":files"},
		{"image convert --from ~", ":words raw ploop"},
		{"image convert --from = ~", ":words raw ploop"}, // bash's way to split
		{"image convert --from = r", ":words raw"},
		{"image convert --from =", ":words raw ploop"},
		{"show ~", ":words other vol1 vol2"},
		{"show v", ":words vol1 vol2"},
		{"show vol1 ~", ":words"},
		{"show --json v", ":words vol1 vol2"},
		{"rm -f ~", ":words other vol1 vol2"},
		{"remove --f", ":words --force"},
		{"remove -- --f", ":words"},
		{"create ~", ":words"},
		{"create v --image ~", ":files"},
		{"create v --image f --rea", ":words --read-only"},
		{"show --run-dir /nowhere ~", ":words"},
		{"--run-dir " + dir + " show o", ":words other"},
		{"--r", ":words --run-dir"},
		{"completion ~", ":words bash zsh"},
		{"frob ~", ":words"},
	} {
		var out, errs bytes.Buffer
		code := run(append([]string{"__complete", "--"}, words(tt.line)...), &out, &errs)
		if got := strings.Join(strings.Fields(out.String()), " "); code != 0 || got != tt.want {
			t.Errorf("%s: exit %d, %q, want %q %s", tt.line, code, got, tt.want, &errs)
		}
	}
}

// TestBashScript has a real bash run the script.
func TestBashScript(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("no bash here")
	}
	dir := fakeDaemon(t)
	bin := t.TempDir()
	if err := os.Symlink(binary(t), filepath.Join(bin, "holdfast")); err != nil {
		t.Fatal(err)
	}
	script := bashScript + `
COMP_WORDS=(holdfast show v); COMP_CWORD=2
_holdfast
printf '%s\n' "${COMPREPLY[@]}"
`
	cmd := exec.Command(bash, "-c", script)
	cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "HOLDFAST_RUN_DIR="+dir)
	out, err := cmd.CombinedOutput()
	if err != nil || !slices.Equal(strings.Fields(string(out)), []string{"vol1", "vol2"}) {
		t.Errorf("%q, %v", out, err)
	}
}

// TestEveryFlagCompletes: of each flag with a value it is decided what its value may be: some
// words, a file, or nothing that could be guessed.
func TestEveryFlagCompletes(t *testing.T) {
	free := []string{"queues", "depth", "level", "parallel", "drain", "consumer", "timeout", "standby-timeout", "recover-timeout", "stop-timeout",
		"standby-errors", "metrics-listen", "size", "cluster-size"}
	words := []string{"device", "output"} // by complete itself
	var each func(c *cli.Command)
	each = func(c *cli.Command) {
		for _, sub := range c.Subcommands {
			each(sub)
		}
		for _, f := range c.Flags {
			name := f.Names()[0]
			if d, ok := f.(cli.DocGenerationFlag); !ok || !d.TakesValue() {
				continue
			}
			if flagValues[name] == nil && !takesFile[name] && !slices.Contains(free, name) && !slices.Contains(words, name) {
				t.Errorf("%s --%s: what is its value completed to?", c.Name, name)
			}
		}
	}
	for _, c := range newApp(io.Discard, io.Discard).Commands {
		each(c)
	}
}

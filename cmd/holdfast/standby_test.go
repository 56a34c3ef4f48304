package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/api"
	"holdfast/ploop"
)

// heldDevice is a device in standby, with all that can be said of it.
func heldDevice() api.Device {
	since := time.Date(2026, 3, 1, 12, 0, 0, 0, time.Local)
	next, deadline := since.Add(time.Minute), since.Add(time.Hour)
	return api.Device{
		Status: api.Status{
			Name: "vol", ID: 0, Path: "/dev/ublkb0", Size: 1 << 30, State: api.StateStandby, Since: since, Gate: []string{"standby"},
			Queues: 1, Depth: 64, DataPath: "copy", Images: []ploop.ImageStatus{{Path: "/srv/base"}, {Path: "/srv/top", Level: 1}},
			Latency: []api.Latency{{Op: "read"}, {Op: "write", Count: 4, Sum: 0.002, Buckets: latencyBuckets(map[int]uint64{2: 3, 20: 1})}},
			Standby: api.StandbyStatus{
				Value: "on", Enabled: true, Flag: true, Consumers: []string{"lio", "me"}, Since: &since, Cause: "write of\n\"/srv/top\"", Errno: "ENOTCONN",
				Deadline: &deadline, Held: 3, Tags: 64, Stuck: 1, HeldSeconds: 12, StuckSeconds: 30, Resume: api.ResumeReopen, Attempts: 2, LastError: "still\ndead", NextAttempt: &next,
				Seconds: 12.34, Entered: 2, Resumed: 1, HeldTotal: 9, HeldFailed: 4,
				Triggers: map[string]uint64{"ENOTCONN": 3}, Inconsistencies: map[string]uint64{"unbalanced-detach": 1, "enabled-key-off": 2},
			},
		},
		Problem: "in standby", Advice: "do something",
	}
}

func latencyBuckets(at map[int]uint64) []uint64 {
	b := make([]uint64, len(api.LatencyBounds)+1)
	for i, n := range at {
		b[i] = n
	}
	return b
}

// standbyDaemon answers as a manager does whose device vol is in standby, and records what
// else than a question it is asked.
type standbyDaemon struct {
	dir  string
	held api.Device
	key  api.KeyInfo
	// refuse is the code of the answer to whatever is to be changed; "": it is done.
	refuse api.Code
	asked  []string
	users  string // what the last question for devices said of their users
}

func newStandbyDaemon(t *testing.T) *standbyDaemon {
	t.Helper()
	f := &standbyDaemon{dir: t.TempDir(), held: heldDevice(), key: api.KeyInfo{On: true, Holders: []string{"hand", "lio"}}}
	l, err := net.Listen("unix", filepath.Join(f.dir, "control.sock"))
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: f}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	t.Setenv("HOLDFAST_RUN_DIR", f.dir)
	return f
}

func (f *standbyDaemon) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	if r.Method != http.MethodGet {
		f.asked = append(f.asked, strings.TrimSpace(r.Method+" "+r.URL.EscapedPath()+" "+string(body)))
		if f.refuse != "" {
			w.WriteHeader(http.StatusConflict)
			json.NewEncoder(w).Encode(api.Error{Code: f.refuse, Message: "no: " + string(f.refuse)})
			return
		}
	}
	after := f.held
	after.State, after.Standby.Value, after.Standby.Flag, after.Standby.Held = api.StateLive, "off", false, 0
	if r.Method == http.MethodPost && r.URL.Path == "/v1/devices" || r.Method == http.MethodPut && strings.HasPrefix(r.URL.Path, "/v1/attr/") {
		io.WriteString(w, `{"name":"v"}`)
		return
	}
	var answer any
	switch path := strings.TrimPrefix(r.URL.Path, "/v1"); {
	case path == "/devices":
		f.users = r.URL.Query().Get("users")
		answer = api.Snapshot{Driver: api.DriverInfo{Available: true}, Key: f.key, Devices: []api.Device{f.held}}
	case path == "/devices/vol/standby" && string(body) == `{"on":true}`, path == "/devices/vol", path == "/devices/ublkb0":
		answer = f.held
	case path == "/devices/vol/wait":
		if q := r.URL.Query()["state"]; slices.Contains(q, api.StateLost) {
			after.State = api.StateLost
		} else {
			<-r.Context().Done()
			return
		}
		answer = after
	case strings.HasPrefix(path, "/devices/vol/"):
		answer = after
	case path == "/standby-check":
		answer = f.key
	case path == "/attr/block/vol/state":
		answer = api.AttrInfo{Value: "standby"}
	case path == "/attr/":
		answer = api.AttrInfo{Dir: true, Entries: []api.AttrEntry{{Name: "block", Dir: true}, {Name: "odd name"}}}
	case path == "/attr/block":
		answer = api.AttrInfo{Dir: true, Entries: []api.AttrEntry{{Name: "ublkb0", Target: "vol"}, {Name: "vol", Dir: true}}}
	case path == "/attr/block/vol":
		answer = api.AttrInfo{Dir: true, Entries: []api.AttrEntry{{Name: "state"}}}
	case path == "/events":
		for i, name := range []string{"vol", ""} {
			e := api.Event{Time: f.held.Since, Device: name, Kind: "kind", Message: fmt.Sprintf("a <b>\n%d", i)}
			if q := r.URL.Query().Get("device"); q == "" || q == name {
				json.NewEncoder(w).Encode(e)
			}
		}
		return
	default:
		w.WriteHeader(http.StatusNotFound)
		answer = api.Error{Code: api.CodeNotFound, Message: "there is no " + path}
	}
	json.NewEncoder(w).Encode(answer)
}

// TestStandbyCommands: what each command asks the manager for, and what it says then.
func TestStandbyCommands(t *testing.T) {
	f := newStandbyDaemon(t)
	cwd, err := filepath.Abs(".")
	if err != nil {
		t.Fatal(err)
	}
	replace := func(image, rest string) string {
		return `POST /v1/devices/vol/replace {` + strings.ReplaceAll(image, "CWD", cwd) + rest + `}`
	}
	for _, tt := range []struct{ line, asked, out string }{
		{"standby vol status", "", "on\n"},
		{"standby vol", "", "on\n"},
		{"standby /dev/ublkb0", "", "on\n"},
		{"standby-check", "", "on, held by hand, lio\n"},
		{"wait vol standby", "", "standby\n"},
		{"wait vol live,standby lost --timeout 0s", "", "standby\n"},
		{"wait vol lost --timeout 1h", "", "lost\n"},
		{"wait nix removed", "", "removed\n"},
		{"standby vol on", `PUT /v1/devices/vol/standby {"on":true}`, "vol: standby is on; 3 requests held\n"},
		{"standby vol off", `PUT /v1/devices/vol/standby {"on":false}`, "vol: standby is off; 3 requests were held, which failed or are failing\n"},
		{"standby-check status", "", "on, held by hand, lio\n"},
		{"standby-check on", `PUT /v1/standby-check {"on":true}`, "on, held by hand, lio\n"},
		{"attach vol --consumer me", "PUT /v1/devices/vol/leases/me", ""},
		{"attach --consumer=a/b vol", "PUT /v1/devices/vol/leases/a%2Fb", ""}, // for the manager to refuse
		{"detach --consumer me vol", "DELETE /v1/devices/vol/leases/me", ""},
		{"replace vol top", replace(`"image":{"path":"CWD/top"}`, `,"drain":"10s"`), "vol: level 1 is " + cwd + "/top; standby is off\n"},
		{"replace --top vol /f --drain 1m", replace(`"image":{"path":"/f"}`, `,"drain":"1m0s"`), "vol: level 1 is /f; standby is off\n"},
		{"replace vol raw@/a_b --level 0 --force", replace(`"level":0,"image":{"path":"/a b","raw":true},"force":true`, `,"drain":"10s"`), `vol: level 0 is "raw@/a b"; standby is off` + "\n"},
		{"attr get block/vol/state", "", "standby\n"},
		{"attr get /block/vol/state/", "", "standby\n"},
		{"attr set /block/vol/queue/standby off", `PUT /v1/attr/block/vol/queue/standby {"value":"off"}`, ""},
		{"attr list", "", "block/\n\"odd name\"\n"},
		{"attr list -r", "", "block/\nblock/ublkb0 -> vol\nblock/vol/\nblock/vol/state\n\"odd name\"\n"},
		{"attr list block/vol", "", "block/vol/state\n"},
		{"attr list block/vol/state", "", "block/vol/state\n"},
		{"events", "", "2026-03-01 12:00:00 vol kind a <b>; 0\n2026-03-01 12:00:00 - kind a <b>; 1\n"},
		{"events --device vol", "", "2026-03-01 12:00:00 vol kind a <b>; 0\n"},
	} {
		f.asked = nil
		var out, errs bytes.Buffer
		code := run(words(tt.line), &out, &errs)
		if code != 0 || out.String() != tt.out || errs.Len() != 0 || strings.Join(f.asked, "\n") != tt.asked {
			t.Errorf("%s: exit %d, stdout %q, stderr %q, asked %q", tt.line, code, &out, &errs, f.asked)
		}
	}
}

// TestMarkWithoutStandby: with a fuse off nothing was held, so nothing failed.
func TestMarkWithoutStandby(t *testing.T) {
	f := newStandbyDaemon(t)
	f.held.Standby.Value = "not supported"
	var out, errs bytes.Buffer
	if code := run(words("standby vol off"), &out, &errs); code != 0 || out.String() != "vol: standby is off\n" {
		t.Errorf("exit %d, stdout %q, stderr %q", code, &out, &errs)
	}
}

// TestCreateAsks: create's flags about standby, as the manager gets them.
func TestCreateAsks(t *testing.T) {
	f := newStandbyDaemon(t)
	for _, tt := range []struct {
		line string
		want api.Spec
	}{
		{"create v --image /f", api.Spec{}},
		{"create v --image /f --resume manual", api.Spec{}},
		{"create v --image /f --recovery reopen --on-recovered /b", api.Spec{Resume: "reopen", OnResumed: "/b"}},
		{"create v --image /f --recovery reopen --resume manual", api.Spec{}},
		{"create v --image /f --resume reopen --standby-timeout 90s --standby-errors EIO,ESTALE --on-standby /bin/a --on-resumed /bin/../b",
			api.Spec{Resume: "reopen", StandbyTimeout: api.Duration(90 * time.Second), StandbyErrors: []string{"EIO", "ESTALE"}, OnStandby: "/bin/a", OnResumed: "/b"}},
	} {
		f.asked = nil
		var out, errs bytes.Buffer
		if code := run(words(tt.line), &out, &errs); code != 0 || len(f.asked) != 1 {
			t.Errorf("%s: exit %d, %s, asked %q", tt.line, code, &errs, f.asked)
			continue
		}
		var got api.Spec
		if err := json.Unmarshal([]byte(strings.TrimPrefix(f.asked[0], "POST /v1/devices ")), &got); err != nil {
			t.Fatal(err)
		}
		tt.want.Name, tt.want.Images, tt.want.DataPath = "v", []ploop.ImageRef{{Path: "/f"}}, "auto"
		if !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s:\ngot  %+v\nwant %+v", tt.line, got, tt.want)
		}
	}
}

// TestStandbyRefusals: mistakes are seen before the manager is asked, and its refusals
// become exit codes.
func TestStandbyRefusals(t *testing.T) {
	t.Setenv("HOLDFAST_SERVE_BINARY", "/bin/true")
	f := newStandbyDaemon(t)
	for _, tt := range []struct {
		line, want string
	}{
		{"standby", "NAME is missing"},
		{"standby vol 1", `"1" is none of on, off, status`},
		{"standby vol on off", "one argument too many"},
		{"standby-check on off", "one argument too many"},
		{"standby-check yes", `"yes" is none of on, off, status`},
		{"attach vol", "--consumer is missing"},
		{"attach --consumer me", "NAME is missing"},
		{"attach vol --consumer ~", "needs a value that is not empty"},
		{"detach vol", "--consumer is missing"},
		{"detach vol me", "one argument too many"},
		{"replace vol", "FILE is missing"},
		{"replace vol a b", "one argument too many"},
		{"replace vol f --level -1", "--level -1"},
		{"replace vol f --level top", `flag --level: "top" is not a whole number`},
		{"replace vol f --level 1 --top", "not both"},
		{"replace vol f --drain -1s", "--drain -1s"},
		{"replace vol f --drain 5", `replace: flag --drain: "5" is a time without a unit: write 5s, 5m or 5h`},
		{"replace vol f --drain=1.5", `write 1.5s, 1.5m or 1.5h`},
		{"replace vol f --drain 1d", `"1d" is not a time: its units are ms, s, m and h`},
		{"replace vol f --drain soon", `"soon" is not a time`},
		{"wait vol live --timeout 30", "write 30s, 30m or 30h"},
		{"wait vol live --timeout -1s", "--timeout -1s"},
		{"daemon --stop-timeout 90", "write 90s"},
		{"create v --image f --recover-timeout 90", "write 90s"},
		{"wait", "NAME is missing"},
		{"wait vol", "STATE is missing"},
		{"wait vol alive", `"alive" is not a state: there are live, `},
		{"wait vol live,", `"" is not a state`},
		{"list -o name,frob", `there is no column "frob"; 'holdfast list -o help' lists them`},
		{"list -o name,", `there is no column ""`},
		{"list -o +", `there is no column ""`},
		{"list --json -o frob", `there is no column "frob"`},
		{"show /dev/null", `"/dev/null" is not a block device`},
		{"replace vol raw@", "raw@"},
		{"attr", "which of get, set, list?"},
		{"attr get", "PATH is missing"},
		{"attr get block", "is a directory"},
		{"attr set a", "VALUE is missing"},
		{"attr list a b", "one argument too many"},
		{"events vol", "one argument too many"},
		{"why", "NAME is missing"},
		{"create v --image f --standby-timeout 0s", "--standby-timeout 0s"},
		{"create v --image f --standby-timeout 30", `"30" is a time without a unit`},
		{"create v --image f --standby-errors EIO,ewhat", "ewhat"},
		{"create v --image f --standby-errors EIO,", "standby error"},
		{"create v --image f --standby-errors ENOSPC", "ENOSPC"},
		{"create v --image f --recovery hope", "hope"},
		{"daemon --targets iet", "iet"},
		{"daemon --targets lio,none", "none"},
	} {
		var out, errs bytes.Buffer
		code := run(words(tt.line), &out, &errs)
		msg := errs.String()
		if code != exitUsage || out.Len() != 0 || !strings.Contains(msg, tt.want) || !strings.HasPrefix(msg, "holdfast: ") || strings.Count(msg, "\n") != 1 {
			t.Errorf("%s: exit %d, stdout %q, stderr %q", tt.line, code, &out, msg)
		}
	}
	if len(f.asked) > 0 {
		t.Errorf("the manager was asked %q", f.asked)
	}
	for _, tt := range []struct {
		refuse api.Code
		code   int
	}{
		{api.CodeBusy, exitBusy}, {api.CodeNotSupported, exitFailure}, {api.CodeImage, exitFailure},
		{api.CodeNotFound, exitFailure}, {api.CodeConflict, exitFailure}, {api.CodeInvalid, exitUsage}, {api.CodeDriver, exitDriver},
	} {
		f.refuse = tt.refuse
		for _, line := range []string{"standby vol on", "standby vol off", "standby-check off", "attach vol --consumer me", "detach vol --consumer me", "replace vol /f", "attr set a 1"} {
			var out, errs bytes.Buffer
			if code := run(words(line), &out, &errs); code != tt.code || out.Len() != 0 || errs.String() != "holdfast: no: "+string(tt.refuse)+"\n" {
				t.Errorf("%s, refused as %s: exit %d, stdout %q, stderr %q", line, tt.refuse, code, &out, &errs)
			}
		}
	}
	f.refuse = ""
	for _, line := range []string{"standby nix status", "standby nix off", "why nix", "attr get nix", "wait nix live", "show /dev/ublkb7", "show /dev/nix"} {
		var out, errs bytes.Buffer
		if code := run(words(line), &out, &errs); code != exitFailure || !strings.Contains(errs.String(), "there is no") && !strings.Contains(errs.String(), "neither a device's name nor") {
			t.Errorf("%s: exit %d, %q", line, code, &errs)
		}
	}
	for _, line := range []string{"standby v on", "standby v status", "standby-check status", "attach v --consumer c", "detach v --consumer c", "replace v f", "why v", "events", "events --follow", "wait v live", "wait v removed", "wait v live --timeout 1h", "standby v", "standby-check", "list -o name", "attr get a", "attr set a 1", "attr list"} {
		var out, errs bytes.Buffer
		if code := run(words("--run-dir /nowhere "+line), &out, &errs); code != exitUnreachable || strings.Count(errs.String(), "\n") != 1 {
			t.Errorf("%s without a manager: exit %d, %q", line, code, &errs)
		}
	}
}

// TestEventsJSON: a line is an object, and is what package device makes of it.
func TestEventsJSON(t *testing.T) {
	newStandbyDaemon(t)
	var out, errs bytes.Buffer
	if code := run([]string{"events", "--json"}, &out, &errs); code != 0 {
		t.Fatalf("exit %d: %s", code, &errs)
	}
	for line := range strings.Lines(out.String()) {
		var e api.Event
		dec := json.NewDecoder(strings.NewReader(line))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&e); err != nil || e.Kind != "kind" || !strings.Contains(line, "<b>") {
			t.Errorf("%s: %v", line, err)
		}
	}
	if strings.Count(out.String(), "\n") != 2 {
		t.Errorf("%s", &out)
	}
}

// TestFollowEnds: a manager that goes away ends a reader with the code for that.
func TestFollowEnds(t *testing.T) {
	newStandbyDaemon(t)
	var out, errs bytes.Buffer
	if code := run([]string{"events", "--follow"}, &out, &errs); code != exitUnreachable || strings.Count(out.String(), "\n") != 2 || strings.Count(errs.String(), "\n") != 1 {
		t.Errorf("exit %d, %q, %q", code, &out, &errs)
	}
}

// TestStandbyShown: what list, show and why make of a device in standby.
func TestStandbyShown(t *testing.T) {
	newStandbyDaemon(t)
	var out, errs bytes.Buffer
	if code := run([]string{"list"}, &out, &errs); code != 0 || !strings.Contains(out.String(), " standby:3/64 ") ||
		errs.String() != "holdfast: warning: device vol: in standby; do something\n" {
		t.Errorf("list: exit %d\n%s%q", code, &out, &errs)
	}
	for _, tt := range []struct {
		command string
		want    []string
	}{
		{"show", []string{
			"vol  /dev/ublkb0  1G  standby\n├─ problem: in standby\n│  └─ do something\n",
			"├─ latency, of one request in 64\n│  └─ write: mean 500µs, half below 200µs, 99% below no bound\n",
			"├─ standby: on\n│  ├─ since 2026-03-01 12:00:00: write of; \"/srv/top\"\n│  ├─ leases: lio, me\n" +
				"│  ├─ 3 of 64 requests held, the oldest for 12s, 9 were, 4 of these failed\n│  ├─ 1 request has not come back from replaced files, the oldest for 30s\n" +
				"│  ├─ resume: reopen, 2 attempts, the next at 2026-03-01 12:01:00\n│  ├─ last failure: still; dead\n" +
				"│  ├─ requests fail from 2026-03-01 13:00:00\n│  ├─ entered 2 times, resumed 1 time, 12.3 s in all\n" +
				"│  ├─ 2 inconsistencies: enabled-key-off\n│  └─ 1 inconsistency: unbalanced-detach\n",
		}},
		{"why", []string{
			"vol is in standby since 2026-03-01 12:00:00: it processes nothing, and holds 3 requests of at most 64, the oldest for 12s.\n",
			"The storage answered ENOTCONN: write of; \"/srv/top\".\n",
			"2 consumers will wait for it: lio, me.\n", "2026-03-01 13:00:00", "still; dead", "'holdfast standby vol off'",
		}},
	} {
		out.Reset()
		if code := run([]string{tt.command, "vol"}, &out, &errs); code != 0 {
			t.Fatalf("%s: exit %d: %s", tt.command, code, &errs)
		}
		for _, want := range tt.want {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%s: %q is not in\n%s", tt.command, want, &out)
			}
		}
	}
}

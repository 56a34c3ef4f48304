package users

import (
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"holdfast/api"

	"golang.org/x/sys/unix"
)

// tree makes files and symbolic links ("-> target") below a new directory.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if target, ok := strings.CutPrefix(content, "-> "); ok {
			err = os.Symlink(target, path)
		} else {
			err = os.WriteFile(path, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// sysDisks has ublkb0 with a partition, ublkb1, and ublkb10, whose name begins
// like ublkb1's.
var sysDisks = map[string]string{
	"sys/block/ublkb0/dev":                "259:0\n",
	"sys/block/ublkb0/ublkb0p1/dev":       "259:1\n",
	"sys/block/ublkb0/ublkb0p1/partition": "1\n",
	"sys/block/ublkb1/dev":                "259:2\n",
	"sys/block/ublkb10/dev":               "259:3\n",
	"proc/self/mountinfo":                 "22 27 0:21 / /proc rw - proc proc rw\n",
	"proc/swaps":                          "Filename\tType\tSize\tUsed\tPriority\n",
}

func withDisks(extra map[string]string) map[string]string {
	m := map[string]string{}
	for k, v := range sysDisks {
		m[k] = v
	}
	for k, v := range extra {
		m[k] = v
	}
	return m
}

func TestFindUsers(t *testing.T) {
	disks := map[int]string{0: "/dev/ublkb0", 1: "/dev/ublkb1", 10: "/dev/ublkb10"}
	tests := []struct {
		name  string
		files map[string]string
		want  map[int][]api.User
	}{
		{"nobody", nil, map[int][]api.User{}},
		{"mount by number, escaped mount point", map[string]string{
			"proc/self/mountinfo": "36 35 259:2 / /mnt/my\\040disk rw - ext4 /dev/root rw\n",
		}, map[int][]api.User{1: {{Kind: "mount", Device: "ublkb1", Name: "/mnt/my disk"}}}},
		{"mount of a partition", map[string]string{
			"proc/self/mountinfo": "36 35 259:1 / /mnt rw shared:1 - ext4 /dev/ublkb0p1 rw\n",
		}, map[int][]api.User{0: {{Kind: "mount", Device: "ublkb0p1", Name: "/mnt"}}}},
		{"btrfs: anonymous number, found by source", map[string]string{
			"proc/self/mountinfo": "36 35 0:44 / /mnt rw shared:1 master:2 - btrfs /dev/ublkb10 rw\n",
		}, map[int][]api.User{10: {{Kind: "mount", Device: "ublkb10", Name: "/mnt"}}}},
		{"mount in another namespace, ours not repeated", map[string]string{
			"proc/self/mountinfo": "36 35 259:0 / /a rw - ext4 /dev/ublkb0 rw\n",
			"proc/self/ns/mnt":    "-> mnt:[1]",
			"proc/70/ns/mnt":      "-> mnt:[2]",
			"proc/70/mountinfo":   "36 35 259:0 / /a rw - ext4 /dev/ublkb0 rw\n37 35 259:2 / /b rw - ext4 /dev/ublkb1 rw\n",
			"proc/71/ns/mnt":      "-> mnt:[2]",
			"proc/71/mountinfo":   "37 35 259:2 / /b rw - ext4 /dev/ublkb1 rw\n",
			"proc/72/ns/mnt":      "-> mnt:[1]",
		}, map[int][]api.User{
			0: {{Kind: "mount", Device: "ublkb0", Name: "/a"}},
			1: {{Kind: "mount", Device: "ublkb1", Name: "/b", PID: 70}},
		}},
		{"swap, but not a swap file", map[string]string{
			"proc/swaps": "Filename Type Size Used Priority\n/dev/ublkb1 partition 1 0 -2\n/dev/ublkb0 file 1 0 -3\n",
		}, map[int][]api.User{1: {{Kind: "swap", Device: "ublkb1", Name: "/dev/ublkb1"}}}},
		{"holders", map[string]string{
			"sys/block/ublkb1/holders/dm-3":           "",
			"sys/block/dm-3/dm/name":                  "vg-lv\n",
			"sys/block/ublkb0/ublkb0p1/holders/md127": "",
		}, map[int][]api.User{
			0: {{Kind: "holder", Device: "ublkb0p1", Name: "md127"}},
			1: {{Kind: "holder", Device: "ublkb1", Name: "dm-3 (vg-lv)"}},
		}},
		{"loop and LIO", map[string]string{
			"sys/block/loop7/loop/backing_file":                    "/dev/ublkb1\n",
			"sys/block/loop8/loop/backing_file":                    "/srv/ublkb1\n",
			"sys/kernel/config/target/core/iblock_0/d1/udev_path":  "/dev/ublkb1\n",
			"sys/kernel/config/target/core/fileio_1/d2/udev_path":  "/dev/sda\n",
			"sys/kernel/config/target/core/alua/lu_gps/dummy_file": "",
		}, map[int][]api.User{1: {
			{Kind: "loop", Device: "ublkb1", Name: "/dev/loop7"},
			{Kind: "target", Device: "ublkb1", Name: "iblock_0/d1"},
		}}},
		{"processes: once each, not by prefix, not by chance name", map[string]string{
			"proc/300/comm": "fio\n", "proc/300/fd/3": "-> /dev/ublkb1", "proc/300/fd/4": "-> /dev/ublkb1",
			"proc/301/comm": "dd\n", "proc/301/fd/3": "-> /srv/jail/dev/ublkb0p1",
			"proc/302/comm": "vi\n", "proc/302/fd/3": "-> /home/ublkb1", "proc/302/fd/5": "-> /dev/ublkb100",
			"proc/303/fd/3":  "-> /dev/ublkb10 (deleted)",
			"proc/304/comm":  "gone\n",
			"proc/nota/fd/3": "-> /dev/ublkb1",
		}, map[int][]api.User{
			0:  {{Kind: "process", Device: "ublkb0p1", Name: "dd", PID: 301}},
			1:  {{Kind: "process", Device: "ublkb1", Name: "fio", PID: 300}},
			10: {{Kind: "process", Device: "ublkb10", Name: "?", PID: 303}},
		}},
		{"a damaged mount table is read as far as it goes", map[string]string{
			"proc/self/mountinfo": "\n36 35\n36 35 259:0 / /a\\0 rw - \n36 35 259:2 / /b rw -\n\\",
		}, map[int][]api.User{
			0: {{Kind: "mount", Device: "ublkb0", Name: "/a\\0"}},
			1: {{Kind: "mount", Device: "ublkb1", Name: "/b"}},
		}},
		{"what must be undone first comes first", map[string]string{
			"proc/5/comm": "a\n", "proc/5/fd/0": "-> /dev/ublkb1",
			"proc/self/mountinfo": "36 35 259:2 / /z rw - ext4 x rw\n36 35 259:2 / /b rw - ext4 x rw\n",
		}, map[int][]api.User{1: {
			{Kind: "mount", Device: "ublkb1", Name: "/b"},
			{Kind: "mount", Device: "ublkb1", Name: "/z"},
			{Kind: "process", Device: "ublkb1", Name: "a", PID: 5},
		}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			root := tree(t, withDisks(tt.files))
			got, err := Find(root+"/proc", root+"/sys", disks)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got  %+v\nwant %+v", got, tt.want)
			}
		})
	}
}

// TestUsersHang: a process that hangs holds nobody up, and one look at it is enough.
func TestUsersHang(t *testing.T) {
	// Time enough for the one that doesn't hang, however slow the machine is.
	defer func(was time.Duration) { inspectTime = was }(inspectTime)
	inspectTime = 4 * time.Second
	root := tree(t, withDisks(map[string]string{
		"proc/7/fd/3": "-> /dev/ublkb0",
		"proc/8/fd/3": "-> /dev/ublkb0",
		"proc/8/comm": "dd\n",
	}))
	pipe := filepath.Join(root, "proc/7/comm") // who opens it waits for a writer
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	find := func() ([]api.User, error) {
		m, err := Find(root+"/proc", root+"/sys", map[int]string{0: "/dev/ublkb0"})
		return m[0], err
	}
	want := []api.User{{Kind: "process", Device: "ublkb0", Name: "dd", PID: 8}}
	before := runtime.NumGoroutine()
	for range 3 {
		if users, err := find(); err == nil || !strings.Contains(err.Error(), " 7 ") || !reflect.DeepEqual(users, want) {
			t.Errorf("%v, %v, want %v", users, err, want)
		}
	}
	if n := runtime.NumGoroutine() - before; n != 1 {
		t.Errorf("%d looks at a process that hangs", n)
	}
	w, err := os.OpenFile(pipe, os.O_WRONLY, 0) // the one look ends
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
}

func TestUsersWithoutSysfs(t *testing.T) {
	root := tree(t, map[string]string{
		"proc/self/mountinfo": "36 35 259:2 / /m rw - ext4 /dev/ublkb4 rw\n",
	})
	got, err := Find(root+"/proc", root+"/sys", map[int]string{4: "/dev/ublkb4"})
	if err != nil || len(got[4]) != 1 || got[4][0].Name != "/m" {
		t.Errorf("got %+v, %v", got, err)
	}
	if _, err := Find(root+"/nowhere", root+"/sys", map[int]string{4: ""}); err == nil {
		t.Error("no mount table at all, and no error")
	}
}

func TestUsersHere(t *testing.T) {
	// Nobody holds a device that isn't there, on a real /proc and /sys.
	users, err := Find("/proc", "/sys", map[int]string{999999: "/dev/ublkb999999"})
	if err != nil || len(users) != 0 {
		t.Errorf("got %v, %v", users, err)
	}
}

func TestUserString(t *testing.T) {
	for _, tt := range []struct {
		u    api.User
		want string
	}{
		{api.User{Kind: "mount", Device: "ublkb0", Name: "/mnt"}, "mounted on /mnt"},
		{api.User{Kind: "mount", Device: "ublkb0p2", Name: "/a\x1b[2Jb"}, `mounted on "/a\x1b[2Jb", by partition ublkb0p2`},
		{api.User{Kind: "mount", Device: "ublkb0", Name: "/m", PID: 9}, "mounted on /m (in the mount namespace of process 9)"},
		{api.User{Kind: "process", Device: "ublkb0", Name: "fio", PID: 7}, "open in process 7 (fio)"},
		{api.User{Kind: "swap", Device: "ublkb0", Name: "/dev/ublkb0"}, "in use as swap"},
		{api.User{Kind: "holder", Device: "ublkb0", Name: "dm-1"}, "part of block device dm-1"},
		{api.User{Kind: "loop", Device: "ublkb0", Name: "/dev/loop0"}, "behind loop device /dev/loop0"},
		{api.User{Kind: "target", Device: "ublkb0", Name: "iblock_0/a"}, "backstore iblock_0/a of a target"},
	} {
		if got := tt.u.String(); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
}

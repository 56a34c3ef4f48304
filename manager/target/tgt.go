package target

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"time"
)

// tgtadm is run at most this often, and this long.
const (
	tgtEvery = 2 * time.Second
	tgtTime  = 5 * time.Second
)

// tgtCache spares running a program at every look.
type tgtCache struct {
	at   time.Time
	last []Backing
	err  error
}

// tgtd asks the daemon, if its socket is there.
func (s *scanner) tgtd() (present bool, out []Backing, err error) {
	sockets, err := attr(s.Proc, "net", "unix")
	if err != nil {
		return false, nil, err
	}
	if !strings.Contains(sockets, "/tgtd") {
		s.tgt = tgtCache{}
		return false, nil, nil
	}
	if time.Since(s.tgt.at) > tgtEvery {
		text, err := s.tgtadm()
		s.tgt = tgtCache{time.Now(), parseTgt(text), err}
	}
	// The scanner fills in what it gets.
	return true, append([]Backing(nil), s.tgt.last...), s.tgt.err
}

func (s *scanner) tgtadm() (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), tgtTime)
	defer cancel()
	out, err := s.Output(ctx, s.TgtAdm, "--lld", "iscsi", "--mode", "target", "--op", "show")
	if err != nil {
		return "", fmt.Errorf("%s: %w", filepath.Base(s.TgtAdm), err)
	}
	return string(out), nil
}

// parseTgt reads the listing: targets, in them LUNs, in these the path of the backing store.
func parseTgt(text string) (out []Backing) {
	name, lun := "", ""
	for line := range strings.Lines(text) {
		key, value, ok := strings.Cut(strings.TrimSpace(line), ": ")
		if !ok {
			continue
		}
		switch {
		case strings.HasPrefix(key, "Target "):
			name, lun = value, ""
		case key == "LUN":
			lun = value
		case key == "Backing store path" && value != "None" && value != "" && lun != "":
			out = append(out, Backing{Name: name + "/" + lun, Path: value})
		}
	}
	return out
}

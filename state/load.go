package state

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"holdfast/api"
)

// Load reads every record, as LoadOne does. The problems are those of earlier starts as well.
func (r Records) Load() ([]*Record, []api.Problem, error) { return r.each(r.LoadOne) }

// Read is Load for who has no right to change anything: what can't be read stays where it is.
func (r Records) Read() ([]*Record, []api.Problem, error) { return r.each(r.readOne) }

// ReadOne is Read for one device, nil: it has no record.
func (r Records) ReadOne(name string) (*Record, *api.Problem, error) { return r.readOne(name) }

func (r Records) each(one func(name string) (*Record, *api.Problem, error)) ([]*Record, []api.Problem, error) {
	names, err := r.names()
	if err != nil {
		return nil, nil, err
	}
	var recs []*Record
	for _, name := range names {
		rec, _, err := one(name)
		if err != nil {
			return nil, nil, err
		}
		if rec != nil {
			recs = append(recs, rec)
		}
	}
	return recs, r.damaged(recs), nil
}

// names are all that have a record or a copy of one, sorted.
func (r Records) names() ([]string, error) {
	entries, err := os.ReadDir(r.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	var names []string
	for _, e := range entries {
		file := e.Name()
		switch {
		case strings.HasPrefix(file, "."):
		case strings.HasSuffix(file, RecordSuffix):
			names = append(names, strings.TrimSuffix(file, RecordSuffix))
		}
	}
	if r.Run != "" {
		entries, err := os.ReadDir(filepath.Join(r.Run, copies))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("run directory: %w", err)
		}
		for _, e := range entries {
			switch {
			case e.IsDir():
				names = append(names, e.Name())
			case strings.HasSuffix(e.Name(), RecordSuffix):
				names = append(names, strings.TrimSuffix(e.Name(), RecordSuffix))
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// oldCopyPath is where copies were before each device had a directory.
func (r Records) oldCopyPath(name string) string {
	return filepath.Join(r.Run, copies, name+RecordSuffix)
}

// LoadOne reads the record of one device, nil: there is none. One that can't be used is renamed
// to NAME.json.damaged and becomes a problem, unless there is a copy: then nothing was lost. A
// copy also stands for a record that is missing, or could not be written any more; it is
// written again, if that is possible now.
func (r Records) LoadOne(name string) (*Record, *api.Problem, error) {
	if len(name) < 200 { // the longest that a device can have, and more
		stale, _ := filepath.Glob(filepath.Join(r.Dir, "."+name+RecordSuffix+"*"))
		for _, path := range stale {
			os.Remove(path) // a save that a crash cut off before its rename
		}
	}
	rec, problem, err := r.readOne(name)
	if err != nil {
		return nil, nil, err
	}
	if problem != nil {
		p := putAside(problem.File, errors.New(strings.TrimPrefix(problem.Reason, damagedReason)))
		p.Device = name
		if rec != nil {
			p.Advice = copyAdvice
		}
		problem = &p
	}
	if rec == nil {
		return nil, problem, nil
	}
	if is, err := ReadRecord(r.Path(name)); err != nil || is.Serial < rec.Serial {
		_ = write(r.Path(name), rec)
	}
	return rec, problem, nil
}

// copyAdvice is about a damaged record of which there is a copy.
const copyAdvice = "nothing is lost, the run directory had a copy: delete the file"

// readOne reads a record, or its copy if that is newer.
func (r Records) readOne(name string) (rec *Record, problem *api.Problem, err error) {
	rec, err = readNamed(r.Path(name), name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		p := damagedProblem(r.Path(name), err.Error())
		p.Device = name
		problem = &p
	}
	if r.Run == "" {
		return rec, problem, nil
	}
	for _, path := range []string{r.CopyPath(name), r.oldCopyPath(name)} {
		c, err := readNamed(path, name)
		if err == nil && c.BootID == r.Boot && (rec == nil || rec.Serial < c.Serial) {
			rec = c
		}
	}
	if rec != nil && problem != nil {
		problem.Advice = copyAdvice
	}
	return rec, problem, nil
}

func readNamed(path, name string) (*Record, error) {
	rec, err := ReadRecord(path)
	if err == nil && rec.Spec.Name != name {
		return nil, fmt.Errorf("it is the record of %q", rec.Spec.Name)
	}
	return rec, err
}

// damaged are the problems of all files that were put aside, and of those that are not yet.
func (r Records) damaged(recs []*Record) (problems []api.Problem) {
	entries, _ := os.ReadDir(r.Dir)
	for _, e := range entries {
		file := e.Name()
		name, _, _ := strings.Cut(file, RecordSuffix)
		var p api.Problem
		switch {
		case strings.HasPrefix(file, "."):
			continue
		case strings.Contains(file, RecordSuffix+DamagedSuffix):
			p = damagedProblem(filepath.Join(r.Dir, file), "put aside by an earlier start")
		case strings.HasSuffix(file, RecordSuffix):
			_, err := readNamed(filepath.Join(r.Dir, file), strings.TrimSuffix(file, RecordSuffix))
			if err == nil {
				continue
			}
			p = damagedProblem(filepath.Join(r.Dir, file), err.Error())
		default:
			continue
		}
		p.Device = name
		if slices.ContainsFunc(recs, func(rec *Record) bool { return rec.Spec.Name == name }) {
			p.Advice = copyAdvice
		}
		problems = append(problems, p)
	}
	return problems
}

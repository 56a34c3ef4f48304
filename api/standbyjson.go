package api

import "encoding/json"

var (
	_ json.Marshaler   = StandbyStatus{}
	_ json.Unmarshaler = (*StandbyStatus)(nil)
)

// standbyNames is a StandbyStatus with the names that fields of it had before. They are said
// beside the new ones for scripts that know them, and read for servers of an earlier version.
type standbyNames struct {
	*plainStandby
	Recovery  string `json:"recovery"`  // Resume
	Recovered uint64 `json:"recovered"` // Resumed
}

type plainStandby StandbyStatus // without methods

// MarshalJSON says renamed fields by both names.
func (s StandbyStatus) MarshalJSON() ([]byte, error) {
	return json.Marshal(standbyNames{(*plainStandby)(&s), s.Resume, s.Resumed})
}

// UnmarshalJSON takes renamed fields by either name.
func (s *StandbyStatus) UnmarshalJSON(b []byte) error {
	in := standbyNames{plainStandby: (*plainStandby)(s)}
	if err := json.Unmarshal(b, &in); err != nil {
		return err
	}
	if s.Resume == "" {
		s.Resume = in.Recovery
	}
	if s.Resumed == 0 {
		s.Resumed = in.Recovered
	}
	return nil
}

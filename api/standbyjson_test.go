package api

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
)

// TestStandbyNamesOfBefore: fields that were renamed are said by both names, and read by either.
func TestStandbyNamesOfBefore(t *testing.T) {
	want := Device{Status: Status{Name: "v", Standby: StandbyStatus{Value: "on", Resume: ResumeReopen, Resumed: 3, Entered: 4}}}
	b, err := json.Marshal(&want)
	if err != nil {
		t.Fatal(err)
	}
	for _, field := range []string{`"resume":"reopen"`, `"recovery":"reopen"`, `"resumed":3`, `"recovered":3`, `"entered":4`} {
		if !strings.Contains(string(b), field) {
			t.Errorf("%s is not in %s", field, b)
		}
	}
	now := strings.NewReplacer(`"recovery":"reopen"`, `"x":0`, `"recovered":3`, `"y":0`)
	before := strings.NewReplacer(`"resume":"reopen"`, `"x":0`, `"resumed":3`, `"y":0`)
	for name, text := range map[string]string{"both": string(b), "now": now.Replace(string(b)), "before": before.Replace(string(b))} {
		var got Device
		if err := json.Unmarshal([]byte(text), &got); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v\ngot  %+v\nwant %+v", name, err, got, want)
		}
	}
}

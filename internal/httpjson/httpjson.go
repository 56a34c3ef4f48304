// Package httpjson reads the requests of holdfast's API, and answers them: what manager and servers have in
// common.
package httpjson

import (
	"encoding/json"
	"net/http"
	"strconv"

	"holdfast/api"
)

// MaxBody bounds what a small request carries, in bytes.
const MaxBody = 64 << 10

// Body reads a request's JSON; false: it was answered with what is wrong.
func Body[T any](w http.ResponseWriter, r *http.Request, what string) (*T, bool) {
	in := new(T)
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, MaxBody))
	dec.DisallowUnknownFields()
	if err := dec.Decode(in); err != nil {
		Error(w, api.Errorf(api.CodeInvalid, "not %s: %w", what, err))
		return nil, false
	}
	return in, true
}

// Truth reads a parameter that is true or false; not ok: it was answered with what is wrong.
func Truth(w http.ResponseWriter, r *http.Request, name string) (is, ok bool) {
	v := r.URL.Query().Get(name)
	if v == "" {
		return false, true
	}
	is, err := strconv.ParseBool(v)
	if err != nil {
		Error(w, api.Errorf(api.CodeInvalid, "%s=%q is neither true nor false", name, v))
	}
	return is, err == nil
}

// Reply answers with a value.
func Reply(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	text, err := json.Marshal(body)
	if err != nil {
		status, text = http.StatusInternalServerError, []byte("{}")
	}
	// With its length the answer is whole when it was flushed: the process may end.
	w.Header().Set("Content-Length", strconv.Itoa(len(text)+1))
	w.WriteHeader(status)
	w.Write(append(text, '\n'))
}

// Error answers with an error and the status of its code.
func Error(w http.ResponseWriter, err error) {
	e := api.AsError(err)
	Reply(w, e.Code.Status(), e)
}

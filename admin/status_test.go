package admin

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"example.com/keyring"
)

// Problems come with what to do. An inline KEK is one that may be wanted.
func TestStatusSaysWhatToDo(t *testing.T) {
	s := alone(t, nil)
	out, err := runCommand(t, s.url, "keys", "status")
	if err != nil || !strings.Contains(out, "notice: Anyone who can read the key files has the keys") || !strings.Contains(out, "    Configure another KEK") {
		t.Errorf("%v\n%s", err, out)
	}
}

// Scripts hear by the status alone that something is wrong, and have all of it as JSON.
func TestStatusIsAFindingIfSomethingIsWrong(t *testing.T) {
	for severity, bad := range map[keyring.Severity]bool{"": false, keyring.SeverityNotice: false, keyring.SeverityWarning: true, keyring.SeverityCritical: true, "newer": true} {
		v := Overview{Cluster: "c", Verdict: Verdict{severity, "so it is"}}
		if severity != "" {
			v.Problems = []Cause{{Severity: severity, Title: "x is wrong"}}
		}
		api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { json.NewEncoder(w).Encode(v) }))
		out, err := runCommand(t, api.URL, "keys", "status")
		if errors.As(err, new(finding)) != bad || !strings.Contains(out, "so it is\n") || strings.Contains(out, "x is wrong") != (severity != "") {
			t.Errorf("%q: %v\n%s", severity, err, out)
		}
		out, again := runCommand(t, api.URL, "keys", "status", "-json")
		want, _ := json.Marshal(v)
		if out != string(want)+"\n" || errors.As(again, new(finding)) != bad {
			t.Errorf("-json: %v\n%s", again, out)
		}
		api.Close()
	}
}

// After keys rotate -compromised no key of before is of use.
func TestRotateAfterACompromise(t *testing.T) {
	s := alone(t, nil)
	old := s.node.Keyring().Keys()[0].ID
	if out, err := runCommand(t, s.url, "keys", "rotate", "-compromised"); err != nil || !strings.Contains(out, "is active") {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, k := range s.node.Keyring().Keys() {
		if k.ID == old && !(k.Revoked && k.Removing) {
			t.Errorf("%+v", k)
		}
	}
}

// TestRotatePublishesFirst: the JWKS has the key before it signs, and what is no time, or comes too late, is refused before
// there is a key.
func TestRotatePublishesFirst(t *testing.T) {
	s := alone(t, nil)
	old, err := s.node.Keyring().ActiveKey()
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"-publish", "5"}, {"-publish", "-5m"}, {"-publish", "0s"}, {"-publish", "1000000h"}, {"-publish", "5m", "-compromised"}} {
		if out, err := runCommand(t, s.url, append([]string{"keys", "rotate"}, args...)...); err == nil || len(s.node.Keyring().Keys()) != 1 {
			t.Errorf("%q: %v, %s", args, err, out)
		}
	}
	if out, err := runCommand(t, s.url, "keys", "rotate", "-publish", "5m"); err != nil || !strings.Contains(out, "is prepublished") {
		t.Fatalf("%v\n%s", err, out)
	}
	active, err := s.node.Keyring().ActiveKey()
	if err != nil || active.ID != old.ID {
		t.Errorf("%s is active, %v", active.ID, err)
	}
	for _, k := range s.node.Keyring().Keys() {
		if !strings.Contains(string(s.node.Keyring().JWKS()), k.ID.String()) {
			t.Errorf("the JWKS lacks %s", k.ID)
		}
		if wait := time.Until(k.Publish); k.ID != old.ID && (wait < 4*time.Minute || wait > 5*time.Minute) {
			t.Errorf("it is due in %v", wait)
		}
	}
}

package admin

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"example.com/keyring"
	"github.com/hashicorp/raft"
)

// A server whose API gives an error, or is something else, is no server that is down, and the leader is still one: else the advice
// would be to start it again, and to leave one server the only member.
func TestABadAnswerIsNoMissingLeader(t *testing.T) {
	for _, test := range []struct {
		name, says string
		answer     http.HandlerFunc
	}{
		{"not found", "404 Not Found: 404 page not found", http.NotFound},
		{"refused", "400 Bad Request: who", func(w http.ResponseWriter, _ *http.Request) { respond(w, http.StatusBadRequest, "who") }},
		{"a page", "is no keyring", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>") }},
		{"another API", "is no keyring", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"id":7}`) }},
		{"another server", "s9 answers at its address", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"id":"s9"}`) }},
	} {
		api := httptest.NewServer(test.answer)
		defer api.Close()
		h := &Handler{id: "s2", peers: http.DefaultClient}
		all := three()
		for _, id := range []raft.ServerID{"s1", "s3"} {
			all[id] = h.ask(t.Context(), id, api.URL)
		}
		at := testSite
		at.server = "s2" // which follows s1
		v := overviewOf(at, testNow, all)
		if len(v.Problems) != 1 || v.Problems[0].Kind != problemBadAnswer || !slices.Equal(v.Problems[0].Servers, []raft.ServerID{"s1", "s3"}) {
			t.Fatalf("%s: %+v", test.name, v.Problems)
		}
		c := v.Problems[0]
		if !strings.Contains(c.Details[0], test.says) || c.Severity != keyring.SeverityWarning || strings.Contains(strings.Join(c.Commands, " "), "controlplane serve") {
			t.Errorf("%s: %+v", test.name, c)
		}
		if v.Servers[0].Role != "bad answer" || v.Verdict.Text != "It works, with 1 problem to solve. First: "+c.Title+"." {
			t.Errorf("%s: %+v, %q", test.name, v.Servers, v.Verdict.Text)
		}
		tells(all, "s3", "no leader, critical")
		change(all, "s3", func(a *answer) { a.Error, a.Bad, a.ID = "", false, "s3" })
		if c := overviewOf(at, testNow, all).Problems[0]; c.Kind != problemCutOff || !strings.Contains(c.Details[0], "the leader is s1") {
			t.Errorf("%s: of one that hears from no leader: %+v", test.name, c)
		}
	}
}

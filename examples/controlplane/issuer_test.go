package main

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"example.com/keyring/internal/keyringtest"
)

// TestTokensPageChangesTheIssuerOfTheControlPlane goes through the steps of docs/tokens.md with cluster.json: each token
// of before is good until the page says otherwise, and each issuer has its document at its own address.
func TestTokensPageChangesTheIssuerOfTheControlPlane(t *testing.T) {
	row := regexp.MustCompile("(?m)^\\| \\d \\| `Issuer: (\\w+)(?:, AcceptIssuers: \\{(\\w+)\\})?` \\|")
	steps := row.FindAllStringSubmatch(keyringtest.Pages(t)["docs/tokens.md"], -1)
	if len(steps) != 3 {
		t.Fatalf("the page has %d steps", len(steps))
	}
	hosts := map[string]string{"old": "127.0.0.1:8001", "new": "127.0.0.1:9001"}
	dir := initialized(t, 1)
	path := filepath.Join(dir, "cluster.json")
	var tokens []string
	for i, step := range steps {
		t.Run("step "+step[0][2:3], func(t *testing.T) {
			c, err := readCluster(dir)
			if err != nil {
				t.Fatal(err)
			}
			c.Issuer, c.AcceptIssuers = "http://"+hosts[step[1]], nil
			if step[2] != "" {
				c.AcceptIssuers = []string{"http://" + hosts[step[2]]}
			}
			b, err := json.Marshal(c)
			if err == nil {
				err = os.WriteFile(path, b, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			s := startServers(t, dir, options{}, nil, "s1")["s1"]
			var signed struct{ Token string }
			if err := json.Unmarshal(ask(s, "POST", "/v1/identities/web", "{}").Body.Bytes(), &signed); err != nil {
				t.Fatal(err)
			}
			tokens = append(tokens, signed.Token)
			for of, token := range tokens {
				got := ask(s, "GET", "/v1/whoami", "", func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+token) }).Code
				want := http.StatusOK
				if i == 2 && of == 0 { // has the old issuer, which is forgotten
					want = http.StatusUnauthorized
				}
				if got != want {
					t.Errorf("the token of step %d: %d, want %d", of+1, got, want)
				}
			}
			for _, name := range step[1:] {
				document := ask(s, "GET", "/.well-known/openid-configuration", "", func(r *http.Request) { r.Host = hosts[name] })
				if want := `"issuer":"http://` + hosts[name] + `"`; name != "" && !strings.Contains(document.Body.String(), want) {
					t.Errorf("at %s there is no %s: %s", hosts[name], want, document.Body)
				}
			}
		})
	}
}

package keyring

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"example.com/keyring/internal/peer"
	"github.com/hashicorp/raft"
)

// TestCertificatesThatEndSoonAreAProblem two weeks before, or when a third of their life is left; and at once if others refuse
// this server's.
func TestCertificatesThatEndSoonAreAProblem(t *testing.T) {
	const day = 24 * time.Hour
	from := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, tt := range []struct {
		name     string
		at       time.Duration
		found    []Certificate
		refused  error
		severity Severity // empty: there is no problem
		server   raft.ServerID
		text     string
	}{
		{"a year, 15 days before", 350 * day, []Certificate{{"s1", false, from, from.Add(365 * day)}}, nil, "", "", ""},
		{"a year, 13 days before", 352 * day, []Certificate{{"s1", false, from, from.Add(365 * day)}}, nil, SeverityWarning, "", "the own certificate expires at 2027-01-01 00:00:00 UTC, in 312h0m0s"},
		{"an hour, half of it over", 30 * time.Minute, []Certificate{{"s1", false, from, from.Add(time.Hour)}}, nil, "", "", ""},
		{"an hour, 15 minutes left", 45 * time.Minute, []Certificate{{"s1", false, from, from.Add(time.Hour)}}, nil, SeverityWarning, "", "in 15m0s"},
		{"a CA", 45 * time.Minute, []Certificate{{"s1", true, from, from.Add(time.Hour)}}, nil, SeverityWarning, "", "the CA certificate expires at 2026-01-01 01:00:00 UTC"},
		{"of another", 45 * time.Minute, []Certificate{{"s2", false, from, from.Add(time.Hour)}}, nil, SeverityWarning, "s2", "the certificate that it shows expires at"},
		{"refused", 0, nil, errors.New("own certificate expired"), SeverityCritical, "", "own certificate expired"},
		{"its files can't be read", 0, nil, fmt.Errorf("tls.crt: %w", peer.ErrKept), SeverityWarning, "", "tls.crt: the files that were read before stay in use"},
	} {
		o := goodOverview()
		o.now, o.certificates, o.refused = from.Add(tt.at), tt.found, tt.refused
		var ps []Problem
		for _, p := range o.status().Problems {
			if p.Kind == ProblemCertificate {
				ps = append(ps, p)
			}
		}
		if tt.severity == "" && len(ps) == 0 {
			continue
		}
		if len(ps) != 1 || ps[0].Severity != tt.severity || ps[0].Server != tt.server || !strings.Contains(ps[0].Detail, tt.text) || ps[0].Advice == "" {
			t.Errorf("%s: %+v", tt.name, ps)
		}
	}
}

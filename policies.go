package keyring

// The policies of the servers, as they tell them to each other, and where they differ.

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// The issuers are compared by what comes of the two settings together.
const (
	policyIssuer        = "Tokens.Issuer"
	policyAcceptIssuers = "Tokens.AcceptIssuers"
)

// policies are the settings that have to be the same on all servers, as text, for Status. A leader goes by
// its own.
func (c Config) policies() map[string]string {
	return map[string]string{
		"Rotation.Every": c.Rotation.Every.String(), "Rotation.Lead": c.Rotation.Lead.String(),
		"Rotation.Undo": c.Rotation.Undo.String(), "Rotation.Retain": c.Rotation.Retain.String(),
		policyIssuer: fmt.Sprintf("%.500s", c.Tokens.Issuer), policyAcceptIssuers: acceptText(c.Tokens.AcceptIssuers),
		"Tokens.JWKSURL": c.Tokens.JWKSURL, "Tokens.Algorithm": c.Tokens.Algorithm,
		"Tokens.MaxTTL": c.Tokens.MaxTTL.String(), "Tokens.Leeway": c.Tokens.Leeway.String(),
		"RekeyGrace": c.RekeyGrace.String(), "Backups.Every": c.Backups.Every.String(), "Backups.Keep": fmt.Sprint(c.Backups.Keep),
	}
}

// acceptText has each issuer in a line. No URL has a line break.
func acceptText(issuers []string) (text string) {
	for _, issuer := range slices.Compact(slices.Sorted(slices.Values(issuers))) {
		text += issuer + "\n"
	}
	return text
}

// tokenIssuers are the issuers of a server's tokens: the one that it signs with, and those that it takes
// besides.
type tokenIssuers struct {
	own    string // empty takes any
	others []string
}

// issuersIn reads the policies of a server. known is false for one of a build that has one issuer alone.
func issuersIn(policies map[string]string) (i tokenIssuers, known bool) {
	text, known := policies[policyAcceptIssuers]
	if text != "" {
		i.others = strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	}
	i.own = policies[policyIssuer]
	return i, known
}

func (i tokenIssuers) takes(issuer string) bool {
	return i.own == "" || issuer == i.own || slices.Contains(i.others, issuer)
}

// refuses are the issuers of another server's whose tokens a server refuses.
func (i tokenIssuers) refuses(of tokenIssuers) []string {
	all := slices.Sorted(slices.Values(append([]string{of.own}, of.others...)))
	return slices.Compact(slices.DeleteFunc(all, i.takes))
}

// difference is what differs between the policies of two servers.
type difference struct {
	text     string
	harmless bool // for tokens: servers change from one to the other in any order
}

// differences compare the policies of two servers. What a server of an older build does not tell is not
// compared.
func differences(id, other string, ours, theirs map[string]string) (all []difference) {
	own, _ := issuersIn(ours)
	their, known := issuersIn(theirs)
	eachOther := known && own.takes(their.own) && their.takes(own.own)
	for _, field := range slices.Sorted(maps.Keys(ours)) {
		value, told := theirs[field]
		if !told || value == ours[field] {
			continue
		}
		d := difference{text: fmt.Sprintf("%s is %q on %s, and %q on %s", field, value, other, ours[field], id)}
		switch {
		case field == policyIssuer && eachOther:
			d.text, d.harmless = d.text+"; each accepts the tokens of the other", true
		case field == policyAcceptIssuers && !eachOther:
			continue // by the issuer
		case field == policyAcceptIssuers:
			all = append(all, own.refused(their, id, other)...)
			all = append(all, their.refused(own, other, id)...)
			continue
		}
		all = append(all, d)
	}
	return all
}

// refused says which tokens a server refuses and another one takes.
func (i tokenIssuers) refused(of tokenIssuers, id, other string) []difference {
	issuers := i.refuses(of)
	if len(issuers) == 0 {
		return nil
	}
	return []difference{{text: fmt.Sprintf("%s accepts tokens with the issuers %.500s, and %s rejects them", other, fmt.Sprintf("%q", issuers), id)}}
}

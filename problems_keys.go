package keyring

// Problems of key files and of KEKs.

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"example.com/keyring/internal/durable"
	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/keystore"
	"example.com/keyring/internal/local"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/plan"
)

// keystoreProblems are those of the key files of this server.
func (o overview) keystoreProblems(st Status) []Problem {
	if err := o.keystore.Moved; err != nil { // what is known of the files is of no use then
		return []Problem{{Kind: ProblemMoved, Detail: fmt.Sprintf("%v: keys in memory still work, but this server can't store keys and does not count as a holder of any", err)}}
	}
	return slices.Concat(o.missingProblems(st), o.fileProblems(), o.unknownFileProblems(st))
}

// missingProblems are about keys of the ring that are not held here, as far as no fault of a file says why.
func (o overview) missingProblems(st Status) (all []Problem) {
	if n := o.fetching.Replaced; n > 0 {
		p := Problem{Kind: ProblemKeystore, Detail: fmt.Sprintf(
			"by raft's records this server held %s in another keystore than the one that it found in %s at its start", counted(n, "key"), o.dir)}
		if len(st.Missing) == 0 {
			p.Severity = SeverityNotice
		}
		all = append(all, p)
	}
	voters := local.VotersOf(o.servers)
	faulty := make(map[meta.KeyID]bool, len(o.keystore.Faults))
	for _, f := range o.keystore.Faults {
		faulty[f.Key] = true
	}
	for _, id := range st.Missing {
		// A fault says why; or the key may be removed, or the leader says that it is pending.
		m := meta.KeyID(id)
		if !faulty[m] && o.CaughtUp && o.lasts(o.fetching.Lacking[m]) && plan.IsNeeded(o.Ring.Key(m), voters) {
			all = append(all, Problem{Kind: ProblemKeyMissing, Keys: []KeyID{id}, Detail: "being fetched from the other servers"})
		}
	}
	return all
}

// fileProblems are about key files that do not open, were altered or set aside, whatever the ring says of
// their keys.
func (o overview) fileProblems() (all []Problem) {
	if since := o.keystore.Hangs; !since.IsZero() {
		all = append(all, Problem{Kind: ProblemWrite, Since: since.UTC().Round(0), Detail: fmt.Sprintf(
			"the disk hangs: a write to the keystore directory %s has not returned since %s", o.dir, inUTC(since))})
	}
	unopened := Problem{Kind: ProblemOpening}
	for _, f := range o.keystore.Faults {
		if f.Cause == keystore.Unopened {
			unopened.Keys = append(unopened.Keys, KeyID(f.Key))
			continue
		}
		all = append(all, o.problemOfFault(f))
	}
	if n := len(unopened.Keys); n > 0 {
		unopened.Detail = fmt.Sprintf("still to be opened, newest first: %s", counted(n, "key file"))
		all = append(all, unopened)
	}
	for _, a := range o.keystore.Altered {
		detail := "its file was altered, and will be written again"
		if a.Copy != "" {
			detail = fmt.Sprintf("a file was altered and written again; a copy of the altered one, for the KEKs %q, is %s", a.KEKs, a.Copy)
		}
		all = append(all, Problem{Kind: ProblemAltered, Keys: []KeyID{KeyID(a.Key)}, Detail: detail})
	}
	for _, name := range o.keystore.SetAside {
		all = append(all, Problem{Kind: ProblemSetAside, Detail: name})
	}
	return all
}

// unknownFileProblems are about files of keys that the ring does not know, or no longer.
func (o overview) unknownFileProblems(st Status) (all []Problem) {
	for _, f := range o.keystore.Nomad {
		if o.CaughtUp && o.Ring.WasRemoved(f.Key) {
			all = append(all, Problem{Kind: ProblemNomad, Keys: []KeyID{KeyID(f.Key)}, Detail: fmt.Sprintf(
				"the key was removed, but Nomad's files %q still contain it: delete them", f.Names)})
		}
	}
	for _, f := range o.keystore.Aside {
		if len(plan.Orphans(o.Ring, o.CaughtUp, []meta.KeyID{f.Key})) > 0 {
			all = append(all, Problem{Kind: ProblemOrphan, Keys: []KeyID{KeyID(f.Key)}, Detail: fmt.Sprintf(
				"files %q that were set aside, of a key that the keyring does not know; they are kept", f.Names)})
		}
	}
	for _, id := range st.Orphans {
		p := Problem{Kind: ProblemOrphan, Keys: []KeyID{id}, Detail: "a key file that the keyring does not know; it is kept"}
		if slices.Contains(o.keystore.Unproven, meta.KeyID(id)) {
			p.Severity = SeverityWarning
			p.Detail = fmt.Sprintf("anyone who knows the recipients of its KEK may have made the file of key %s: only Adopt adopts it, and until then Rewrap returns an error that names it", id)
		}
		all = append(all, p)
	}
	return all
}

// newerKeyProblems are about keys of the ring that only a newer build can use. While nothing is sealed under
// one, no call fails.
func (o overview) newerKeyProblems() (all []Problem) {
	for _, m := range o.Ring.Keys {
		if m.Newer() == "" {
			continue
		}
		p := Problem{Kind: ProblemNewer, Keys: []KeyID{KeyID(m.ID)}, Detail: m.Newer() + ": this server does not hold or use the key"}
		if !m.Sealed() {
			p.Severity = SeverityWarning
		}
		all = append(all, p)
	}
	return all
}

// problemOfFault says why this server does not hold a key whose file is here, or should be.
func (o overview) problemOfFault(f keystore.Fault) Problem {
	p := Problem{Keys: []KeyID{KeyID(f.Key)}, KEK: f.KEK, Detail: f.Err.Error()}
	switch f.Cause {
	case keystore.Barred:
		o.describeBar(&p, f.Err)
	case keystore.NomadFile:
		p.Kind = ProblemNomad
	case keystore.Newer:
		p.Kind, p.Detail = ProblemNewer, p.Detail+"; the file stays as it is, and the key waits for it"
	case keystore.Locked:
		p.Kind = kekProblem(KEKState(f.State))
		// What is known of the KEK now counts more than what it was when the file was read.
		if i := slices.IndexFunc(o.keks, func(k KEKStatus) bool { return k.ID == f.KEK && k.Away != "" }); i >= 0 && f.State != kek.Wrong {
			p.Kind, p.Detail = kekProblem(o.keks[i].State), o.keks[i].Away
		}
	case keystore.BadFile:
		p.Kind = ProblemKeyMissing
	case keystore.Unreadable, keystore.Unwritten:
		p.Kind = ProblemWrite
		if m := o.Ring.Key(f.Key); f.Cause == keystore.Unwritten && m != nil && !slices.Contains(o.keystore.Missing, f.Key) {
			p.Severity, p.Detail = SeverityWarning, p.Detail+"; the key is still held, in the previous file"
		}
	}
	return p
}

// canRewrap reports whether Rewrap is what to call now: as far as is known, every file that can be opened is,
// the disk is written, and the KEKs wrap. Otherwise the problem is that.
func (o overview) canRewrap(st Status) bool {
	return !slices.ContainsFunc(o.keystore.Faults, func(f keystore.Fault) bool {
		return f.Cause == keystore.Unopened || f.Cause == keystore.Unreadable || f.Cause == keystore.Unwritten
	}) && !slices.ContainsFunc(st.KEKs, func(k KEKStatus) bool { return k.Away != "" && !k.Old && k.State != KEKUnconfigured })
}

// kekProblem is the kind of problem that a KEK in that state is.
func kekProblem(s KEKState) ProblemKind {
	switch kek.State(s) {
	case kek.Throttled:
		return ProblemKEKThrottled
	case kek.Refuses:
		return ProblemKEKRefuses
	case kek.Unconfigured:
		return ProblemKEKUnconfigured
	case kek.Wrong:
		return ProblemKEKOther
	}
	return ProblemKEKAway
}

// describeBar says what keeps this server from reading a key file, in the same words for every file that has
// the same cause, and with the command that ends it.
func (o overview) describeBar(p *Problem, err error) {
	owner := (*durable.OwnerError)(nil)
	switch {
	case errors.As(err, &owner):
		p.Kind = ProblemFileOwner
		p.Detail = fmt.Sprintf("key files are owned by user %d, not by user %d, as which this server runs", owner.Have, owner.Want)
		p.Advice = fmt.Sprintf("find %s -maxdepth 1 -type f -name '*.json' ! -user %d -exec chown %[2]d {} +  # %s",
			quotedPath(o.dir), owner.Want, p.Kind.advice())
	case errors.Is(err, durable.ErrNotRegular):
		p.Kind = ProblemNotAFile
	default:
		p.Kind = ProblemFileMode
		p.Detail = "the system does not let this server read key files: permission denied"
		p.Advice = fmt.Sprintf("find %s -maxdepth 1 -type f -name '*.json' -exec chmod 600 {} +  # %s", quotedPath(o.dir), p.Kind.advice())
	}
}

// quotedPath is a path as a shell takes it.
func quotedPath(path string) string { return "'" + strings.ReplaceAll(path, "'", `'\''`) + "'" }

// maxJWKS is how many keys a JWKS may have before it is a problem. A key of RS256 has about 430 bytes there,
// and the smallest bound that is known of a relying party's library is 50 KiB: 32 keys leave room for longer
// headers and for what other issuers publish beside them. A cluster that rotates each month has three keys
// there at most.
const maxJWKS = 32

// jwksKeys is how many keys are in the JWKS.
func (o overview) jwksKeys() (n int) {
	for _, m := range o.Ring.Keys {
		if o.now.Before(plan.VerifiesUntil(m, o.tokens)) && !slices.Contains(o.wrongPublic, m.ID) && meta.KnowsAlgorithm(m.Algorithm) {
			n++
		}
	}
	return n
}

func (o overview) jwksProblems() (all []Problem) {
	if n := o.jwksKeys(); n > maxJWKS {
		all = append(all, Problem{Kind: ProblemJWKS, Detail: fmt.Sprintf(
			"it has %d keys: relying parties may reject more than %d, or fetch it slowly", n, maxJWKS)})
	}
	return all
}

func (o overview) kekProblems(st Status) (all []Problem) {
	if n := o.keystore.ToRewrap; n > 0 && o.canRewrap(st) {
		all = append(all, Problem{Kind: ProblemOldKEK, Detail: fmt.Sprintf(
			"not wrapped under exactly the KEKs of the configuration: %s", counted(n, "key file"))})
	}
	for _, k := range st.KEKs {
		if k.State == KEKUnconfigured {
			continue // the files say that
		}
		if k.Away != "" {
			all = append(all, Problem{Kind: kekProblem(k.State), KEK: k.ID, Detail: k.Away})
		}
		if k.Warning != "" {
			all = append(all, Problem{Kind: ProblemKEKFile, KEK: k.ID, Detail: k.Warning})
		}
		if k.ID == kek.InlineID { // its kind names it
			all = append(all, Problem{Kind: ProblemInlineKEK, Detail: "anyone who reads the key files has the keys"})
		}
	}
	return all
}

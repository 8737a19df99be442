package meta

// StepKind says what has become of a key, or of the ring.
type StepKind string

// The steps of a key's life, and a backup.
const (
	StepAdded          StepKind = "added"           // prepublished, not active yet
	StepAdopted        StepKind = "adopted"         // it had a file and no metadata
	StepTokensAdmitted StepKind = "tokens admitted" // of a key that had been adopted for its data only
	StepCompromised    StepKind = "compromised"     // when the key is active, all others are revoked and removed
	StepActivated      StepKind = "activated"
	StepRetired        StepKind = "retired"
	StepRevoked        StepKind = "revoked" // its tokens verify no longer
	StepRekeying       StepKind = "rekeying"
	StepRemoveAsked    StepKind = "remove asked" // once its data has moved
	StepDeprecated     StepKind = "deprecated"
	StepRemoved        StepKind = "removed"
	StepBackup         StepKind = "backup" // of the whole ring
)

// Step is one step of a key, or of the ring if Key is zero.
type Step struct {
	Kind StepKind
	Key  KeyID
}

// Steps returns what has changed from one ring to a later one, by key. The retirement of a key comes before the
// activation of its successor.
func Steps(before, after *Ring) []Step {
	var steps, last []Step
	for _, k := range after.Keys {
		was := before.Key(k.ID)
		if was == nil {
			was = &Key{ID: k.ID}
		}
		for _, s := range k.since(was) {
			if s == StepActivated {
				last = append(last, Step{s, k.ID})
			} else {
				steps = append(steps, Step{s, k.ID})
			}
		}
	}
	for _, k := range before.Keys {
		if after.Key(k.ID) == nil {
			steps = append(steps, Step{StepRemoved, k.ID})
		}
	}
	if after.Backup != before.Backup {
		steps = append(steps, Step{Kind: StepBackup})
	}
	return append(steps, last...)
}

// since returns the steps from an earlier form of the key. A key that did not exist has no state.
func (k *Key) since(was *Key) (steps []StepKind) {
	add := func(happened bool, s StepKind) {
		if happened {
			steps = append(steps, s)
		}
	}
	entered := func(s State) bool { return k.State == s && was.State != s }
	add(entered(StatePrepublished), StepAdded)
	add(was.State == "" && k.Adopted(), StepAdopted)
	add(was.DataOnly && !k.DataOnly, StepTokensAdmitted)
	add(k.Compromised && !was.Compromised, StepCompromised)
	add(entered(StateActive), StepActivated)
	add(was.State == StateActive && k.State != StateActive, StepRetired)
	add(k.Revoked && !was.Revoked, StepRevoked)
	add(entered(StateRekeying), StepRekeying)
	add(k.Remove && !was.Remove, StepRemoveAsked)
	add(entered(StateDeprecated), StepDeprecated)
	return steps
}

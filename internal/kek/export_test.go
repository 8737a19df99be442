package kek

// LocalKEK is a KEK that needs no answer from elsewhere.
type LocalKEK struct{ KEK }

func (LocalKEK) unwraps() bool { return true }

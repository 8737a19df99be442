package jwt

// Members walks a JSON object.
func Members(b []byte, each func(name, value []byte) error) error { return members(b, each) }
